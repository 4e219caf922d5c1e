# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154,SC2016,SC2034 # variables of lib.sh and claims.sh; some are expanded in the guest
#
# A guest gets more memory, and its cards go and come, under traffic. Another guest on the same
# worker has numbered datagrams under way all the time.

# Memory that is plugged in, in bytes: a guest's kernel takes it in blocks of this size.
more=$((128 << 20))

boots_with_slots() {
	memory=128M,slots=1,maxmem=512M boots slots 1 '' ''
}

# The number of datagrams has no end, so that some are under way whatever happens to the other guest.
datagrams_begin() {
	traffic_opens "$1"
	guest_run "$1" "background traffic udp --to $host --patience $patience"
}

datagrams_end() {
	guest_run "$1" stop
	traffic_closes "$1" 1000
}

# In kB, as the guest sees it.
memory_of() {
	guest_run "$1" "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"
}

# has_memory NAME KILOBYTES: true when the guest uses so much. It is told to use what is new.
has_memory() {
	guest_run "$1" 'for state in /sys/devices/system/memory/memory*/state; do
		grep -q online "$state" || echo online >"$state"; done'
	(($(memory_of "$1") >= $2))
}

# QEMU changes the memory table of the device while that is serving.
memory_comes() {
	local before
	before=$(memory_of slots)
	qmp slots object-add "{\"qom-type\": \"memory-backend-ram\", \"id\": \"more\", \"size\": $more}" >/dev/null
	qmp slots device_add '{"driver": "pc-dimm", "id": "module", "memdev": "more"}' >/dev/null
	# Some of it describes the rest.
	until_true "$patience" has_memory slots $((before + more * 9 / 10240)) || fail "the memory does not arrive"
	echo "$before kB before, $(memory_of slots) kB now"
	flows slots
}

# Counts the frames from the host that lie where the device wrote them, behind the end of their
# virtio-net header (one buffer), which nobody but the device writes.
frames_in_new_memory() {
	local address
	address=$(qmp slots query-memory-devices | sed -n 's/.*"addr": \([0-9]*\).*/\1/p')
	qmp slots pmemsave "{\"val\": $address, \"size\": $more, \"filename\": \"$guests/slots.memory\"}" >/dev/null
	[[ $(stat -c %s "$guests/slots.memory") == "$more" ]]
	LC_ALL=C grep -aoP '\x01\x00\x52\x54\x00\x12\x34\x11\x52\x54\x00\x12\x34\x01\x08\x00' "$guests/slots.memory" | wc -l
	rm "$guests/slots.memory"
}

# A guest takes pages from there first, as they are above 4 GiB; new buffers come with the driver.
memory_is_used() {
	local count
	reloads slots 1
	udp slots 500
	count=$(frames_in_new_memory)
	echo "$count frames in the new memory"
	((count > 0)) || fail "no packet arrived in the new memory"
}

# card_goes CARD NETDEV: QEMU gives up all that it has for the card once the guest has let go of it.
card_goes() {
	qmp slots query-status >/dev/null
	: >"$guests/slots/events"
	qmp slots device_del "{\"id\": \"$1\"}" >/dev/null
	until_true "$patience" qmp_told slots "DEVICE_DELETED\", \"data\": {\"device\": \"$1" || fail "the card does not go"
	qmp slots netdev_del "{\"id\": \"$2\"}" >/dev/null
}

# card_comes CARD NETDEV TAP MAC: waits until the guest sees it.
card_comes() {
	qmp slots netdev_add "{\"type\": \"tap\", \"id\": \"$2\", \"ifname\": \"$3\", \"script\": \"no\",
		\"downscript\": \"no\", \"vhost\": true}" >/dev/null
	qmp slots device_add "{\"driver\": \"virtio-net-pci\", \"id\": \"$1\", \"netdev\": \"$2\", \"romfile\": \"\",
		\"mac\": \"$4\"}" >/dev/null
	until_true "$patience" guest_run slots "grep -l $4 /sys/class/net/*/address" >/dev/null || fail "the card does not come"
}

# Prints the open devices and the threads of vhost that QEMU has for a guest, one a line.
held_by() {
	local pid task
	pid=$(guest_pid "$1")
	find "/proc/$pid/fd" -lname /dev/vhost-net
	for task in "/proc/$pid/task"/*; do
		# Other threads come and go.
		if [[ $(cat "$task/comm" 2>/dev/null) == "vhost-$pid" ]]; then
			echo "$task"
		fi
	done
}

# nothing_is_left NAME DEVICE: neither with QEMU nor, of what was the module's device, with the module.
nothing_is_left() {
	[[ ! $(held_by "$1") ]] || return
	if [[ ! $stock ]]; then
		[[ ! -e $class/dev/$2 && ! $(compgen -G "$class/vq/vq.${2#d.}.*") ]] || return
		! grep -qw "$2" "$class"/worker/w.*/dev_list
	fi
}

# The stream goes on with the same card in another device.
card_goes_and_comes() {
	local i device=''
	for ((i = 0; i < $1; i++)); do
		flows slots
		if [[ ! $stock ]]; then
			device=$(device_of slots)
		fi
		[[ $(held_by slots) ]]
		card_goes nic net
		until_true "$patience" nothing_is_left slots "$device" || fail "there is still: $(held_by slots) $device"
		card_comes nic net slots 52:54:00:12:34:11
		guest_run slots network
		if [[ ! $stock ]]; then
			served_by_module slots
			echo "$device went, $(device_of slots) came"
		fi
	done
	flows slots
}

second_card() {
	local card=second
	tap_start second
	card_comes nic2 net2 second 52:54:00:12:35:02
	guest_run slots "choose 52:54:00:12:35:02"
	udp slots 200
	guest_run slots "choose 52:54:00:12:34:11"
	card_goes nic2 net2
	ip link delete dev second
	no_device_of second
	card='' udp slots 200
}

claim "the module takes vhost_net's place" load_module
claim "a guest with room for more memory boots" boots_with_slots
claim "another guest boots" boots steady 2 "''" "''"
claim "datagrams of the other guest are under way" datagrams_begin steady
claim "a stream in both directions begins" stream_begins slots
claim "packets flow" flows slots
claim "memory is plugged in, and packets flow" memory_comes
claim "the card is unplugged with nothing left, and plugged in again, three times" card_goes_and_comes 3
claim "the stream came through that intact" stream_ends
claim "packets arrive in the new memory" memory_is_used
claim "TCP passes both ways by the new memory" tcp slots $((4 << 20))
claim "a second card is plugged in, used and unplugged" second_card
claim "the other guest's datagrams came through all that" datagrams_end steady
claim "the device goes away with QEMU" stops slots
claim "the other guest's device goes away with its QEMU" stops steady
claim "the module is unloaded" unload_module
