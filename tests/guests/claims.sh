# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of lib.sh
#
# Sourced by tests/guests/run: what all suites make their claims of. Every claim about traffic
# is checked twice: the traffic program verifies number, order and checksum of what it sent,
# and the module's counters must account for every packet that crossed the tap.

# Feature bits of the virtio specification that the cases switch.
# shellcheck disable=SC2034 # used by the suites
GUEST_TSO4=7 HOST_TSO4=11 MRG_RXBUF=15 INDIRECT_DESC=28 EVENT_IDX=29 VERSION_1=32 \
	ACCESS_PLATFORM=33 RING_PACKED=34 IN_ORDER=35 RING_RESET=40

# claim TEXT COMMAND...: plans a test.
plan=()
claim() {
	plan+=("$1" "${*:2}")
}

# Exit status for a run that says nothing, as a guest stopped on the emulated machine.
stopped=75

# A guest that stopped may go on after a minute and more, and its kernel then reports a lockup
# of its idle task. For one that KVM gave up see guest_start.
guest_stopped() {
	local file
	for file in "$guests"/*/pid; do
		if ! process_is_gone "$(<"$file")" && guest_is_stuck "$(basename "${file%/pid}")"; then
			return
		fi
	done
	grep -qs 'soft lockup.*swapper' "$guests"/*/console || grep -qs "KVM internal error" "$guests"/*/qemu
}

run_plan() {
	local i status failed=0 text log=$guests/log
	echo "KTAP version 1"
	echo "1..$((${#plan[@]} / 2))"
	for ((i = 0; i < ${#plan[@]}; i += 2)); do
		text="$((i / 2 + 1)) ${plan[i]}"
		local started=$SECONDS
		# In a condition bash would not stop the test at its first failing command.
		set +e
		(
			set -e
			eval "${plan[i + 1]}"
		) >"$log" 2>&1
		status=$?
		set -e
		if ((status == 0)); then
			echo "ok $text"
			# The same is said in words.
			sed '/^{/d; s/^/# /' "$log"
		else
			echo "not ok $text"
			sed 's/^/# /' "$log"
			failed=1
			if emulated && guest_stopped; then
				echo "# a guest stopped on this emulated machine; nothing follows from the failure"
				exit "$stopped"
			fi
		fi
		echo "# $((SECONDS - started)) s"
	done
	return "$failed"
}

# --- What the claims are made of ---------------------------------------------

load_module() {
	if [[ -e /sys/module/vhost_net ]]; then
		modprobe -r vhost_net
	fi
	if [[ $stock ]]; then
		modprobe vhost_net
	else
		insmod "${VHOST_IOCM_KO:?the module is not built}" "$@"
		[[ $(<"$class/worker/default") == w.0 ]]
	fi
}

unload_module() {
	if [[ $stock ]]; then
		modprobe -r vhost_net
	else
		rmmod vhost_iocm
		[[ ! -e $class ]]
	fi
}

# Prints how often stock's threads for guest $1 ran; fails without such a thread.
stock_runs() {
	local pid task sum=0 found=''
	pid=$(guest_pid "$1")
	for task in /proc/"$pid"/task/*; do
		if [[ $(<"$task/comm") == "vhost-$pid" ]]; then
			found=yes
			sum=$((sum + $(cut -d ' ' -f 3 "$task/schedstat")))
		fi
	done
	[[ $found ]] || fail "no vhost thread in QEMU of guest $1" || return
	echo "$sum"
}

served_by_stock() {
	stock_runs "$1" >"$guests/$1/runs"
}

served_by_module() {
	local device
	device=$(device_of "${card:-$1}")
	[[ $(<"$class/dev/$device/owner") == "$(guest_pid "$1")" ]]
	[[ $(value "dev/$device" comm) == qemu-system-x86 ]]
}

# traffic_opens GUEST ... traffic_closes GUEST PACKETS: what goes through in between
# must go through the module (or stock, when that is what is tested). Variable card names
# the tap if that has not the guest's name.
traffic_opens() {
	if [[ $stock ]]; then
		served_by_stock "$1"
	else
		account_open "${card:-$1}"
	fi
}

traffic_closes() {
	if [[ $stock ]]; then
		stock_ran "$1"
	else
		account_close "${card:-$1}" "$2"
	fi
}

stock_ran() {
	local before after
	before=$(<"$guests/$1/runs")
	after=$(stock_runs "$1")
	echo "vhost thread of guest $1 ran $((after - before)) times"
	((after > before))
}

# boots NAME NUMBER FEATURES DEVICE: FEATURES are BIT=VALUE to be negotiated.
boots() {
	local name=$1 number=$2 features=$3 device=$4
	guest_start "$name" "$number" "$device"
	if [[ $stock ]]; then
		served_by_stock "$name"
	else
		served_by_module "$name"
	fi
	# shellcheck disable=SC2086 # to be split
	has_features "$name" $features
}

# has_features NAME BIT=VALUE...
has_features() {
	local name=$1 feature
	for feature in "${@:2}"; do
		[[ $(guest_run "$name" "feature ${feature%=*}") == "${feature#*=}" ]] ||
			fail "feature bit ${feature%=*} is not ${feature#*=}"
	done
}

# Started once from the guest and once from the host; each run is verified both ways.
udp() {
	local name=$1 count=$2 size=${3:-1400} window=${4:-64}
	traffic_opens "$name"
	guest_run "$name" "traffic udp --to $host --count $count --size $size --window $window"
	"$traffic" udp --to "$(guest_address "$name")" --count "$count" --size "$size" --window "$window"
	traffic_closes "$name" $((2 * count))
}

# Both directions at once, started from the guest and then from the host.
tcp() {
	local name=$1 bytes=$2
	traffic_opens "$name"
	guest_run "$name" "traffic tcp --to $host --send $bytes --receive $bytes"
	"$traffic" tcp --to "$(guest_address "$name")" --send "$bytes" --receive "$bytes"
	# Segments cannot be larger than 64 KiB.
	traffic_closes "$name" $((2 * bytes / 65536))
}

# again NAME TIMES COMMAND...: traffic passes after each of several disturbances.
again() {
	local name=$1 times=$2 i
	for ((i = 0; i < times; i++)); do
		"${@:3}" "$name"
		udp "$name" 100
	done
}

# reloads NAME TIMES: packets pass each time that the guest's driver has let go of the device and
# taken it again. The tap may count more than the module: without a driver QEMU reads it.
reloads() {
	local name=$1 times=$2 count=50
	traffic_opens "$name"
	limit=$((4 * patience)) guest_run "$name" "(
		for i in \$(seq $times); do rebind && traffic udp --to $host --count $count >/dev/null 2>/tmp/log || { cat /tmp/log; exit 1; }; done
	)"
	if [[ $stock ]]; then
		stock_ran "$name"
		return
	fi
	# What another claim left there must not count if the counters cannot be read.
	delta=(0 0 0 0 0 0 0 0)
	account_balances "$name" || true
	echo "through the module: ${delta[2]} packets to $name, ${delta[6]} packets from it"
	((delta[2] >= times * count && delta[6] >= times * count))
}

# stops NAME [SIGNAL]: the module lets go of the guest's device.
stops() {
	guest_stop "$@"
	if [[ ! $stock ]]; then
		until_true "$patience" no_device_of "${card:-$1}"
	fi
}

no_device_of() {
	! device_of "$1"
}

# A stream in both directions between the host and a guest, from stream_begins GUEST to
# stream_ends, which other claims may lie between.
stream_begins() {
	mkdir -p "$guests/stream"
	"$traffic" tcp --to "$(guest_address "$1")" --endless --patience "$patience" >"$guests/stream/log" 2>&1 &
	echo $! >"$guests/stream/pid"
	disown
}

stream_ends() {
	kill -TERM "$(guest_pid stream)"
	until_true "$patience" process_is_gone "$(guest_pid stream)" || fail "the stream does not end"
	cat "$guests/stream/log"
	grep -q '"passed":true' "$guests/stream/log"
}

# flows GUEST: packets pass both ways now, through the module (or stock), without being sent for
# this. Variable card applies.
flows() {
	if [[ $stock ]]; then
		served_by_stock "$1"
	else
		counters "${card:-$1}"
		echo "${now[*]}" >"$guests/account-${card:-$1}"
	fi
	until_true "$patience" has_flown "$1"
}

has_flown() {
	if [[ $stock ]]; then
		stock_ran "$1" >/dev/null
	else
		delta=(0 0 0 0 0 0 0 0)
		account_balances "${card:-$1}" || true
		((delta[2] >= 10 && delta[6] >= 10))
	fi
}
