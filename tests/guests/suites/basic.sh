# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of tests/guests/run and claims.sh
#
# Guests with the usual cards, one after the other, two on one worker, and one beside a guest of
# vhost_net.

# average PACKETS BYTES LEAST: of what passed one virtqueue.
average() {
	echo "$1 packets of $(($2 / $1)) bytes on average"
	(($2 / $1 >= $3)) || fail "packets were smaller than $3 bytes"
}

# Segments of up to 64 KiB in one direction. How large they are on average depends on the
# window, but above 9,014 bytes they are no frames of any size that a case uses.
segments() {
	local name=$1 direction=$2 bytes=$((16 << 20))
	traffic_opens "$name"
	guest_run "$name" "traffic tcp --to $host --$direction $bytes"
	# The way back carries nothing but acknowledgements of large segments.
	traffic_closes "$name" 16
	if [[ ! $stock ]]; then
		if [[ $direction == receive ]]; then
			average "${delta[2]}" "${delta[3]}" 9015
		else
			average "${delta[6]}" "${delta[7]}" 9015
		fi
	fi
}

# Datagrams of nearly 9,000 bytes that must pass in one piece.
jumbo() {
	local name=$1 count=$2
	udp "$name" "$count" 8900 16
	if [[ ! $stock ]]; then
		average "${delta[2]}" "${delta[3]}" 8000
		average "${delta[6]}" "${delta[7]}" 8000
	fi
}

link_down_and_up() {
	guest_run "$1" "ip link set eth0 down; ip link set eth0 up"
}

reboot_guest() {
	guest_reboot "$1"
}

# A guest that cannot finish what it was sending.
killed_under_traffic() {
	guest_run "$1" "background traffic udp --to $host"
	stops "$1" KILL
}

refuses_to_unload() {
	if unload_module; then
		fail "a module in use was unloaded"
	fi
}

worker_of() {
	cat "$class/dev/$(device_of "$1")/worker"
}

# Two guests on one worker, talking to each other and to the host at once.
pair() {
	local one=$1 other=$2 worker
	if [[ ! $stock ]]; then
		worker=$(worker_of "$one")
		[[ $(worker_of "$other") == "$worker" ]]
		[[ $(wc -w <"$class/worker/$worker/dev_list") == 2 ]]
	fi
	traffic_opens "$one"
	traffic_opens "$other"
	guest_run "$one" "background traffic udp --to $(guest_address "$other") --count 3000"
	guest_run "$other" "background traffic tcp --to $(guest_address "$one") --send $((4 << 20)) --receive $((4 << 20))"
	"$traffic" udp --to "$(guest_address "$other")" --count 1000
	guest_run "$one" finish
	guest_run "$other" finish
	traffic_closes "$one" 3000
	traffic_closes "$other" 4000
}

# Guest $1 on the module's own node, handed to QEMU as an open file.
boots_on_node() {
	local name=$1 number=$2 node
	exec {node}<>/dev/vhost-iocm
	guest_start "$name" "$number" "" "vhostfd=$node"
	exec {node}>&-
	[[ $(device_of "$name") ]]
}

boots_on_stock() {
	guest_start "$1" "$2" ""
	served_by_stock "$1"
	no_device_of "$1"
}

# Guest $1 on vhost_iocm and guest $2 on vhost_net.
side_by_side() {
	account_open "$1"
	served_by_stock "$2"
	guest_run "$1" "traffic udp --to $(guest_address "$2") --count 2000"
	guest_run "$2" "traffic tcp --to $(guest_address "$1") --send $((4 << 20)) --receive $((4 << 20))"
	account_close "$1" 2000
	stock_ran "$2"
}

load_both() {
	load_module device=vhost-iocm
	modprobe vhost_net
	[[ -c /dev/vhost-iocm && -c /dev/vhost-net ]]
}

unload_both() {
	modprobe -r vhost_net
	unload_module
}

claim "the module takes vhost_net's place" load_module
claim "a modern guest boots on it" boots modern 1 "'$VERSION_1=1 $MRG_RXBUF=1 $EVENT_IDX=1 $INDIRECT_DESC=1'" disable-legacy=on
if [[ $quick ]]; then
	claim "modern: UDP passes both ways" udp modern 300
	claim "modern: TCP passes both ways" tcp modern $((2 << 20))
else
	claim "modern: UDP passes both ways" udp modern 3000
	claim "modern: small datagrams pass both ways" udp modern 2000 64
	claim "modern: TCP passes both ways" tcp modern $((8 << 20))
	claim "modern: segments of up to 64 KiB pass from the guest" segments modern send
	claim "modern: segments of up to 64 KiB pass to the guest" segments modern receive
	claim "modern: traffic passes after each reload of the guest's driver" reloads modern 20
	claim "modern: traffic passes after the link went down and up" again modern 3 link_down_and_up
	claim "modern: traffic passes after each reboot of the guest" again modern 2 reboot_guest
fi
claim "the module cannot be unloaded under a guest" refuses_to_unload
claim "the device goes away with QEMU" stops modern
if [[ ! $quick ]]; then
	claim "a legacy guest boots" boots legacy 1 "'$VERSION_1=0 $MRG_RXBUF=1'" disable-modern=on,disable-legacy=off
	claim "legacy: UDP passes both ways" udp legacy 1000
	claim "legacy: TCP passes both ways" tcp legacy $((4 << 20))
	claim "legacy: traffic passes after each reload of the guest's driver" reloads legacy 5
	claim "legacy: the device goes away with QEMU" stops legacy

	claim "a legacy guest without mergeable buffers boots" boots legacy 1 "'$VERSION_1=0 $MRG_RXBUF=0'" disable-modern=on,disable-legacy=off,mrg_rxbuf=off
	claim "legacy, no mergeable buffers: UDP passes both ways" udp legacy 1000
	claim "legacy, no mergeable buffers: TCP passes both ways" tcp legacy $((4 << 20))
	claim "legacy, no mergeable buffers: the device goes away with QEMU" stops legacy

	claim "a transitional guest boots" boots transitional 1 "'$VERSION_1=1'" disable-modern=off,disable-legacy=off
	claim "transitional: UDP passes both ways" udp transitional 1000
	claim "transitional: TCP passes both ways" tcp transitional $((4 << 20))
	claim "transitional: the device goes away with a killed QEMU, under traffic" killed_under_traffic transitional

	claim "a guest with an MTU of 9000 boots" mtu=9000 boots jumbo 1 "'$MRG_RXBUF=1'" host_mtu=9000
	claim "jumbo: frames pass in one piece both ways" jumbo jumbo 1000
	claim "jumbo: TCP passes both ways" tcp jumbo $((4 << 20))
	claim "jumbo: the device goes away with QEMU" stops jumbo

	claim "a guest without mergeable buffers and with an MTU of 9000 boots" mtu=9000 boots bigbuffers 1 "'$MRG_RXBUF=0 $GUEST_TSO4=1'" host_mtu=9000,mrg_rxbuf=off
	claim "no mergeable buffers: UDP passes both ways" udp bigbuffers 1000
	claim "no mergeable buffers: jumbo frames pass in one piece both ways" jumbo bigbuffers 500
	claim "no mergeable buffers: segments of up to 64 KiB pass to the guest" segments bigbuffers receive
	claim "no mergeable buffers: the device goes away with QEMU" stops bigbuffers

	claim "a guest without event indexes and indirect descriptors boots" boots plainring 1 "'$EVENT_IDX=0 $INDIRECT_DESC=0'" event_idx=off,indirect_desc=off
	claim "plain ring: UDP passes both ways" udp plainring 1000
	claim "plain ring: TCP passes both ways" tcp plainring $((4 << 20))
	claim "plain ring: segments of up to 64 KiB pass from the guest" segments plainring send
	claim "plain ring: the device goes away with QEMU" stops plainring

	claim "a guest without offloads boots" boots nooffload 1 "'$HOST_TSO4=0 $GUEST_TSO4=0'" csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ufo=off,host_ecn=off,host_uso=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off,guest_uso4=off,guest_uso6=off
	claim "no offloads: TCP passes both ways" tcp nooffload $((2 << 20))

	claim "a second guest boots beside it" boots second 2 "''" "''"
	claim "two guests on one worker talk to each other and to the host" pair nooffload second
	claim "the first of two devices goes away with its QEMU" stops nooffload
	claim "the other guest is not disturbed by that" udp second 500
	claim "the second device goes away with its QEMU" stops second
fi
claim "the module is unloaded" unload_module
if [[ ! $quick && ! $stock ]]; then
	claim "vhost_iocm and vhost_net are loaded side by side" load_both
	claim "a guest boots on vhost_iocm, its node passed to QEMU as a file" boots_on_node ours 1
	claim "a guest boots on vhost_net" boots_on_stock theirs 2
	claim "the two guests talk, each through its own module" side_by_side ours theirs
	claim "vhost_iocm's device goes away with QEMU" stops ours
	claim "vhost_net's guest stops" guest_stop theirs
	claim "both modules are unloaded" unload_both
fi
