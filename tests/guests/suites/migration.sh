# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of lib.sh
#
# A guest moves between two QEMU processes, one with tap "red" and one with tap "blue", under a
# stream in both directions.

# Four are precopy and postcopy in both directions.
migrations=${VHOST_IOCM_MIGRATIONS:-4}

# Starts a QEMU for guest 1 that waits for it. "options" apply as in guest_start.
waits_for_guest() {
	tap_start "$1"
	options="-incoming defer ${options:-}" guest_boot "$1" 1 ""
}

migration_is() {
	[[ $(qmp "$1" query-migrate) == *"\"status\": \"$2\""* ]]
}

# True when it has come to an end, good or bad.
migration_is_over() {
	local answer
	answer=$(qmp "$1" query-migrate)
	[[ $answer == *'"status": "completed"'* || $answer == *'"status": "failed"'* ]]
}

# True when what was written since the first copy is being copied.
is_copied_again() {
	local count
	count=$(qmp "$1" query-migrate | sed -n 's/.*"dirty-sync-count": \([0-9]*\).*/\1/p')
	((${count:-0} >= 3)) || migration_is_over "$1"
}

# moves FROM TO MODE: by precopy or postcopy. The QEMU that the guest leaves stays, stopped.
moves() {
	local from=$1 to=$2 mode=$3 name answer postcopy=false
	if [[ $mode == postcopy ]]; then
		postcopy=true
	fi
	for name in "$from" "$to"; do
		qmp "$name" migrate-set-capabilities \
			"{\"capabilities\": [{\"capability\": \"postcopy-ram\", \"state\": $postcopy}]}" >/dev/null
	done
	# The guest shall not stand still (longer than for a millisecond) before all has been copied.
	qmp "$from" migrate-set-parameters '{"downtime-limit": 1, "max-bandwidth": 4294967296}' >/dev/null
	qmp "$to" migrate-incoming "{\"uri\": \"unix:$guests/migration\"}" >/dev/null
	qmp "$from" migrate "{\"uri\": \"unix:$guests/migration\"}" >/dev/null
	if [[ $mode == postcopy ]]; then
		qmp "$from" migrate-start-postcopy >/dev/null
	else
		# Emulated processors write faster than emulated memory is copied, so it would never end.
		until_true "$patience" is_copied_again "$from"
		qmp "$from" migrate-set-parameters '{"downtime-limit": 60000}' >/dev/null
	fi
	until_true "$patience" migration_is_over "$from"
	answer=$(qmp "$from" query-migrate | tr , '\n' | tr -d '"{}')
	grep -oE '(total-time|downtime|transferred|dirty-sync-count|postcopy-requests): [0-9]+' <<<"$answer" | tr '\n' ' '
	echo "($mode)"
	# Pages that the guest asked for where it is now: without any this was precopy.
	[[ $mode == precopy || $answer =~ postcopy-requests:\ [1-9] ]] || fail "no page was asked for" || return
	migration_is "$from" completed
}

is_running() {
	[[ $(qmp "$1" query-status) == *'"status": "running"'* ]]
}

# leaves NAME: its QEMU ends; its tap stays.
leaves() {
	local pid
	pid=$(guest_pid "$1")
	kill -TERM "$pid"
	until_true "$patience" process_is_gone "$pid"
}

# arrives NAME: the guest runs there, by the module (or stock), and packets pass.
arrives() {
	until_true "$patience" is_running "$1" || fail "the guest does not run in $1" || return
	if [[ ! $stock ]]; then
		until_true "$patience" is_served "$1" || fail "the module does not serve $1" || return
	fi
	flows "$1" || fail "no packets flow by $1" || return
	guest_run "$1" true
}

is_served() {
	local device
	device=$(device_of "$1") && [[ $(<"$class/dev/$device/owner") == "$(guest_pid "$1")" ]]
}

goes_to_and_fro() {
	local i
	for ((i = 0; i < migrations; i += 4)); do
		migrates red blue precopy
		migrates blue red postcopy
		migrates red blue postcopy
		migrates blue red precopy
	done
}

migrates() {
	waits_for_guest "$2"
	moves "$@"
	leaves "$1"
	arrives "$2"
}

# While the guest stands still on both sides each page must be the same on both: one that the
# device wrote, and that was not in the log, would be old on the other side.
keeps_all_memory() {
	local name size=$((127 << 20))
	options=-S waits_for_guest blue
	moves red blue precopy
	for name in red blue; do
		# Above the legacy area, which is not memory everywhere.
		qmp "$name" pmemsave "{\"val\": $((1 << 20)), \"size\": $size, \"filename\": \"$guests/$name.memory\"}" >/dev/null
		[[ $(stat -c %s "$guests/$name.memory") == "$size" ]]
	done
	cmp -l "$guests/red.memory" "$guests/blue.memory" >"$guests/different" || true
	head -n 20 "$guests/different"
	# The host writes the time of its boot again when it restores the register that says where to:
	# 12 bytes (KVM's struct pvclock_wall_clock).
	awk 'NR == 1 { first = $1 } $1 - first >= 12 { exit 1 }' "$guests/different"
	rm "$guests"/{red.memory,blue.memory,different}
	qmp blue cont >/dev/null
	leaves red
	arrives blue
	# And back, so that the next claim finds the guest where this one did.
	migrates blue red precopy
}

claim "the module takes vhost_net's place" load_module
claim "a guest boots" boots red 1 "''" "''"
claim "a stream in both directions begins" stream_begins red
claim "packets flow" flows red
claim "all memory is the same on both sides when a guest under traffic has moved" keeps_all_memory
claim "$migrations moves to and fro, by precopy and by postcopy" goes_to_and_fro
claim "the stream came through all moves intact" stream_ends
claim "UDP passes both ways" udp red 500
claim "the device goes away with QEMU" stops red
claim "the module is unloaded" unload_module
