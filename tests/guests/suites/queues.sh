# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of lib.sh and claims.sh
#
# A guest with four queue pairs on four processors, and one on a macvtap.

boots_with_queues() {
	tap_start many multi_queue
	# Two vectors of each pair, one for the configuration and one for the control queue.
	processors=4 guest_start many 1 vectors=10 queues=4
	[[ $(guest_run many 'ls -d /sys/class/net/eth0/queues/[rt]x-* | wc -l') == 8 ]]
	if [[ ! $stock ]]; then
		[[ $(devices_of many | wc -l) == 4 ]]
	fi
}

# Interrupts of the guest's pair $1, of all processors.
pair_interrupts() {
	guest_run many "grep -E 'virtio[0-9]+-(input|output)\\.$1\$' /proc/interrupts" |
		awk '{ for (i = 2; i <= 5; i++) sum += $i } END { print sum + 0 }'
}

# Packets to and from the guest through device $1.
packets_of() {
	echo "$(value "$(queue_of "$1" 0)" handled_packets) $(value "$(queue_of "$1" 1)" handled_packets)"
}

# A thread transmits by its processor's pair, and the tap answers it there.
all_pairs_carry_traffic() {
	local pair i device idle=0 before=() devices=() received transmitted old_received old_transmitted
	if [[ ! $stock ]]; then
		mapfile -t devices < <(devices_of many)
		for device in "${devices[@]}"; do
			before+=("$(packets_of "$device")")
		done
	fi
	local interrupts=()
	for pair in 0 1 2 3; do
		interrupts+=("$(pair_interrupts "$pair")")
	done
	traffic_opens many
	for pair in 0 1 2 3; do
		guest_run many "taskset $((1 << pair)) traffic udp --to $host --count 500"
	done
	traffic_closes many 2000
	for pair in 0 1 2 3; do
		i=$(($(pair_interrupts "$pair") - interrupts[pair]))
		echo "pair $pair: $i interrupts"
		((i > 0)) || idle=1
	done
	for i in "${!devices[@]}"; do
		read -r old_received old_transmitted <<<"${before[i]}"
		read -r received transmitted <<<"$(packets_of "${devices[i]}")"
		echo "${devices[i]}: $((received - old_received)) packets to the guest, $((transmitted - old_transmitted)) from it"
		# The first few come by the pair that the tap chose before it knew better.
		((received - old_received >= 250 && transmitted - old_transmitted >= 250)) || idle=1
	done
	((!idle)) || fail "not all pairs were used"
}

# Each pair's interrupts go to a processor of its own.
interrupts_are_spread() {
	local count
	# shellcheck disable=SC2016 # expanded in the guest
	guest_run many 'for irq in $(sed -n "s/^ *\([0-9]*\):.*virtio[0-9]*-input.*/\1/p" /proc/interrupts); do
		cat /proc/irq/$irq/effective_affinity; done' | tee "$guests/affinity"
	count=$(sort -u "$guests/affinity" | wc -l)
	((count == 4)) || fail "the receive queues' interrupts go to $count processors"
}

all_at_once() {
	traffic_opens many
	# shellcheck disable=SC2016 # expanded in the guest
	guest_run many '(
		for mask in 1 2 4 8; do
			taskset $mask traffic tcp --to '"$host"' --send 2097152 --receive 2097152 >/tmp/tcp.$mask 2>&1 & jobs="$jobs $!";
		done;
		for one in $jobs; do wait $one || failed=yes; done; cat /tmp/tcp.*; test -z "$failed"
	)'
	traffic_closes many 128
}

# A macvtap stands on a device of its own, which is on the bridge through a pair. The module knows
# it by the name of its node.
macvtap() {
	echo "tap$(<"/sys/class/net/virtual/ifindex")"
}

boots_on_macvtap() {
	local node
	ip link add name lower type veth peer name upper
	ip link set dev upper master "$bridge" up
	ip link set dev lower up
	ip link add link lower name virtual address 52:54:00:12:34:11 type macvtap mode bridge
	ip link set dev virtual up
	exec {node}<>"/dev/$(macvtap)"
	tap=fd=$node guest_start virtual 1 ""
	exec {node}>&-
	if [[ $stock ]]; then
		served_by_stock virtual
	else
		card=$(macvtap) served_by_module virtual
	fi
}

# Counts the module's packets: what a macvtap counts is cut into frames already.
macvtap_passes() {
	local device before after
	if [[ $stock ]]; then
		served_by_stock virtual
	else
		device=$(device_of "$(macvtap)")
		before=$(packets_of "$device")
	fi
	guest_run virtual "traffic udp --to $host --count 500"
	"$traffic" udp --to "$(guest_address virtual)" --count 500
	guest_run virtual "traffic tcp --to $host --send $((2 << 20)) --receive $((2 << 20))"
	if [[ $stock ]]; then
		stock_ran virtual
	else
		after=$(packets_of "$device")
		echo "through the module, to and from the guest: $before before, $after after"
		((${after% *} - ${before% *} >= 1000 && ${after#* } - ${before#* } >= 1000))
	fi
}

macvtap_goes() {
	card=$(macvtap) stops virtual
	ip link delete dev lower
}

claim "the module takes vhost_net's place" load_module
claim "a guest boots with four queue pairs" boots_with_queues
claim "four pairs: traffic passes by each of them" all_pairs_carry_traffic
claim "four pairs: their interrupts are spread" interrupts_are_spread
claim "four pairs: TCP passes by all at once" all_at_once
claim "four pairs: the devices go away with QEMU" stops many
claim "a guest boots on a macvtap" boots_on_macvtap
claim "macvtap: traffic passes both ways" macvtap_passes
claim "macvtap: the device goes away with QEMU" macvtap_goes
claim "the module is unloaded" unload_module
