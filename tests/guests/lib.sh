# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by tests/guests/run and scripts/demo-host: KVM guests on a bridge of
# their own, inside scripts/vm and as root. Whatever is known of guest NAME is in the
# directory $guests/NAME, so that any subshell can use it; its tap is named NAME.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
image=$checkout/build/guest/initramfs.cpio
traffic=$checkout/build/guest/target/x86_64-unknown-linux-gnu/release/traffic
guests=$(mktemp -d)
class=/sys/class/vhost

# Addresses reserved for documentation: they can be nobody's network.
bridge=bridge0
subnet=192.0.2
port=7000
# shellcheck disable=SC2034 # used by the scripts that source this file
host=$subnet.1:$port

# The longest that anything but traffic may take, in seconds: a guest's boot takes six on
# an emulated machine that has nothing else to do. The debug kernel is ten times slower.
patience=60
if [[ ${VHOST_IOCM_FLAVOUR:-plain} == *debug ]]; then
	patience=240
fi

fail() {
	echo "$*" >&2
	return 1
}

# The host itself is emulated, and KVM with it. scripts/vm says so by these words.
emulated() {
	grep -q 'nohz=off highres=off' /proc/cmdline
}

# until_true SECONDS COMMAND...: repeats the command until it succeeds.
until_true() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		sleep 0.05
	done
}

# Bridge and host side of the traffic. TCP makes small segments while it believes
# the path to be slow, as an emulated one is; here they shall be as large as they get.
network_start() {
	local file
	for file in "$image" "$traffic" "${VHOST_IOCM_GUEST_KERNEL:-}"; do
		[[ -r $file ]] || fail "${file:-the kernel of the guests} is missing; build it with tests/guests/image and scripts/kernel" || return
	done
	# With an address of its own, since a bridge without one takes that of a port, and another
	# when the port goes: guests would look for the host where it was until they ask again.
	ip link add "$bridge" address 52:54:00:12:34:01 type bridge
	ip address add "$subnet.1/24" dev "$bridge"
	ip link set "$bridge" up
	# A stream shall not wait for minutes when its guest stood still for one, nor be given up: with
	# waits of a second the usual number of them is over after 15 s.
	sysctl -qw net.ipv4.tcp_min_tso_segs=44 net.ipv4.tcp_rto_max_ms=1000 net.ipv4.tcp_retries2=255
	"$traffic" serve --listen "$host" >"$guests/serve" 2>&1 &
	echo $! >"$guests/serve.pid"
	# Its end is no news that bash should report.
	disown
}

network_stop() {
	kill "$(<"$guests/serve.pid")"
	ip link delete "$bridge"
}

# tap_start NAME [FLAG]: a tap on the bridge; FLAG is multi_queue. Variable mtu applies.
tap_start() {
	if [[ ! -e /sys/class/net/$1 ]]; then
		ip tuntap add dev "$1" mode tap vnet_hdr ${2:+"$2"}
	fi
	ip link set dev "$1" mtu "${mtu:-1500}" master "$bridge" up
}

# guest_start NAME NUMBER DEVICE [NETDEV]: boots a guest and waits for its agent.
# NUMBER gives its addresses; DEVICE and NETDEV are options added to QEMU's
# virtio-net-pci device and tap back end. These variables apply, too:
#   mtu         of guest, tap and bridge (1500)
#   machine     QEMU's machine type, with its properties (pc)
#   memory      QEMU's option -m (128)
#   processors  of the guest (1)
#   words       more of the guest's kernel's command line
#   options     more of QEMU's options, divided by blanks
#   tap         where QEMU finds the tap (by its name; one that is not there is made)
guest_start() {
	local name=$1 attempt mtu=${mtu:-1500}

	if [[ -z ${tap:-} ]]; then
		tap_start "$name"
	fi
	ip link set "$bridge" mtu "$mtu"

	for attempt in 1 2 3; do
		guest_boot "$@"
		if guest_wait_ready "$name"; then
			return
		fi
		# The SVM that QEMU emulates lets KVM see an exception being delivered where there is
		# none, now and then; KVM gives the guest up. No vhost device has a part in that: it
		# happens with the kernel's own as well. The guest is started again.
		if ! grep -q "KVM internal error" "$guests/$name/qemu" && ! { emulated && guest_is_stuck "$name"; }; then
			return 1
		fi
		echo "guest $name stopped at boot (attempt $attempt); it is started again"
		kill -KILL "$(guest_pid "$name")"
		until_true "$patience" process_is_gone "$(guest_pid "$name")"
	done
	fail "guest $name stopped at boot three times"
}

guest_boot() {
	local name=$1 number=$2 device=$3 netdev=${4:-}
	local directory=$guests/$name accelerator=kvm processor=host
	# User Mode Linux has no KVM.
	if [[ ! -e /dev/kvm ]]; then
		accelerator=tcg processor=max,-svm
	fi
	rm -rf "$directory"
	mkdir "$directory"
	mkfifo "$directory"/{control,qmp}.{in,out}
	echo "$subnet.1$number:$port" >"$directory/address"

	# Where everything is emulated, a machine of few devices and firmware that does little
	# take a third of the boot away. The timer is periodic for the same reason as in scripts/vm:
	# on emulated SVM an idle guest sleeps for minutes now and then, as if it had lost one. A guest
	# with a timer that counts to a deadline arms it anew for each tick, even a periodic one.
	# Without KVM a guest would measure at boot whether its timer interrupts come, and give up if
	# it had to wait for a processor.
	# shellcheck disable=SC2086 # more options, to be split
	qemu-system-x86_64 -name "$name" -nodefaults -no-user-config -display none \
		-machine "${machine:-pc},accel=$accelerator,usb=off,smbus=off,vmport=off,hpet=off" -cpu "$processor,-tsc-deadline" \
		-m "${memory:-128}" -smp "${processors:-1}" -bios qboot.rom \
		-kernel "$VHOST_IOCM_GUEST_KERNEL" -initrd "$image" \
		-append "console=ttyS0 quiet panic=-1 nohz=off highres=off no_timer_check address=$subnet.1$number/24 mtu=${mtu:-1500} ${words:-}" \
		-serial "file:$directory/console" \
		-chardev "pipe,id=control,path=$directory/control" \
		-device virtio-serial-pci -device virtserialport,chardev=control \
		-chardev "pipe,id=qmp,path=$directory/qmp" -mon chardev=qmp,mode=control \
		${options:-} \
		-netdev "tap,id=net,${tap:-ifname=$name,script=no,downscript=no},vhost=on${netdev:+,$netdev}" \
		-device "virtio-net-pci,id=nic,netdev=net,romfile=,mq=on,mac=52:54:00:12:34:1$number${device:+,$device}" \
		>"$directory/qemu" 2>&1 &
	echo $! >"$directory/pid"
}

guest_pid() {
	echo "$(<"$guests/$1/pid")"
}

# A guest's tick is periodic: KVM delivers it 250 interrupts a second, whether it is idle or
# busy and whatever its devices do. On emulated SVM a guest stops receiving them now and then.
# One was seen to wait for a spinlock then, with interrupts off, on the only processor it has.
guest_is_stuck() {
	local file before
	file=$(compgen -G "/sys/kernel/debug/kvm/$(guest_pid "$1")-*/irq_injections") || return 1
	# One that was told to stand still has not lost anything.
	[[ $(qmp "$1" query-status) == *'"running": true'* ]] || return 1
	before=$(<"$file")
	sleep 2
	[[ $(<"$file") == "$before" ]]
}

guest_address() {
	echo "$(<"$guests/$1/address")"
}

# The agent says so after every boot. Fails at once when QEMU has ended or KVM has given the guest up.
guest_wait_ready() {
	local name=$1 line control begun='' deadline=$((SECONDS + patience))
	exec {control}<>"$guests/$name/control.out"
	until [[ ${line:-} == ready ]]; do
		if read -r -t 1 -u "$control" line; then
			line=$begun$line begun=
		else
			begun+=$line line=
			if ((SECONDS < deadline)) && ! process_is_gone "$(guest_pid "$name")" &&
				! grep -q "KVM internal error" "$guests/$name/qemu"; then
				continue
			fi
			exec {control}>&-
			guest_log "$name"
			fail "guest $name did not come up within $patience s"
			return
		fi
	done
	exec {control}>&-
}

# guest_run NAME COMMAND: runs it in the guest, hands on output and status. Lines are joined.
# Variable limit says how long it may take.
guest_run() {
	local name=$1 command=$2 token=$RANDOM$RANDOM line begun='' in out
	local deadline=$((SECONDS + ${limit:-$((patience * 2))}))
	exec {in}<>"$guests/$name/control.in" {out}<>"$guests/$name/control.out"
	printf '%s %s\n' "$token" "${command//$'\n'/ }" >&"$in"
	while ((SECONDS < deadline)); do
		if ! read -r -t 5 -u "$out" line; then
			begun+=$line
			if grep -q "KVM internal error" "$guests/$name/qemu"; then
				break
			fi
			continue
		fi
		line=$begun$line begun=
		case $line in
		"| "*) echo "${line#| }" ;;
		"$token "*)
			exec {in}>&- {out}>&-
			return "${line#* }"
			;;
		esac
	done
	guest_log "$name"
	fail "guest $name did not finish: $command"
}

# qmp NAME COMMAND [ARGUMENTS]: has the guest's QEMU execute a command of its machine protocol and
# prints the answer. ARGUMENTS are a JSON object. What QEMU tells by itself meanwhile is kept.
qmp() {
	local directory=$guests/$1 arguments=${3:-}
	local token=$RANDOM$RANDOM line in out deadline=$((SECONDS + patience))
	if [[ ! -e $directory/events ]]; then
		: >"$directory/events"
		qmp "$1" qmp_capabilities >/dev/null || return
	fi
	exec {in}<>"$directory/qmp.in" {out}<>"$directory/qmp.out"
	printf '{"execute": "%s", %s"id": "%s"}\n' "$2" "${arguments:+\"arguments\": $arguments, }" "$token" >&"$in"
	while ((SECONDS < deadline)); do
		read -r -t $((deadline - SECONDS)) -u "$out" line || break
		if [[ $line == *"\"id\": \"$token\""* ]]; then
			exec {in}>&- {out}>&-
			echo "$line"
			[[ $line == '{"return"'* ]]
			return
		fi
		echo "$line" >>"$directory/events"
	done
	guest_log "$1"
	fail "QEMU of guest $1 did not answer $2"
}

# qmp_told NAME EVENT: true when QEMU has told of such an event.
qmp_told() {
	qmp "$1" query-status >/dev/null && grep -q "\"event\": \"$2\"" "$guests/$1/events"
}

# The guest's kernel starts anew under the same QEMU.
guest_reboot() {
	local in
	exec {in}<>"$guests/$1/control.in"
	echo "- reboot -f" >&"$in"
	exec {in}>&-
	guest_wait_ready "$1"
}

# What a guest and its QEMU had to say.
guest_log() {
	local directory=$guests/$1
	echo "QEMU of guest $1:" >&2
	cat "$directory/qemu" >&2
	echo "Last lines of its console:" >&2
	tail -n 20 "$directory/console" >&2
}

process_is_gone() {
	# A process that nobody has waited for keeps its entry, with state Z.
	local state
	state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || true
	[[ ${state:-Z} == [ZX] ]]
}

# Ends a guest and waits until its process and tap are free.
guest_stop() {
	local name=$1 signal=${2:-TERM} pid
	pid=$(guest_pid "$name")
	kill -"$signal" "$pid"
	until_true "$patience" process_is_gone "$pid" || fail "QEMU of guest $name does not end"
	ip link delete dev "$name"
}

# Prints the d.N that serves tap NAME, or each of them; fails when no device of the module does.
device_of() {
	local devices
	devices=$(devices_of "$1")
	[[ $devices ]] && echo "${devices%%$'\n'*}"
}

devices_of() {
	local file device key rest
	for file in "$class"/dev/d.*/status; do
		device=${file%/status}
		# A device may go away while it is looked at.
		while IFS=: read -r key rest; do
			if [[ $key == backend && $rest == "$1" ]]; then
				echo "${device##*/}"
			fi
		done <<<"$(cat "$file" 2>/dev/null)"
	done
}

# value PATH NAME: one value of a status file. That is read as a whole: bash goes back to the end
# of each line that it takes, and the kernel then makes up the text anew, in which another number
# may have become longer meanwhile.
value() {
	local key rest
	while IFS=: read -r key rest; do
		if [[ $key == "$2" ]]; then
			echo "$rest"
			return
		fi
	done <<<"$(<"$class/$1/status")"
	fail "no $2 in $class/$1/status"
}

# queue_of DEVICE 0|1: the device's receive or transmit virtqueue.
queue_of() {
	echo "vq/vq.${1#d.}.$2"
}

# Reads into array now what tap NAME and the module's devices count: packets and bytes of
# the tap towards the guest, of the receive queues, and of both from the guest. The
# tap's view is the host's: what it receives the guest has sent.
counters() {
	local device devices queue direction count sum
	devices=$(devices_of "$1")
	[[ $devices ]] || fail "no device of the module serves $1" || return
	now=()
	for queue in 0 1; do
		direction=tx
		if ((queue)); then
			direction=rx
		fi
		for count in packets bytes; do
			now+=("$(<"/sys/class/net/$1/statistics/${direction}_$count")")
		done
		for count in packets bytes; do
			sum=0
			for device in $devices; do
				sum=$((sum + $(value "$(queue_of "$device" "$queue")" "handled_$count")))
			done
			now+=("$sum")
		done
	done
}

# Starts an account of what passes tap NAME, when nothing passes. Tap and module are read one after
# the other: a frame that came in between would be missing from the account for ever. One may come
# whenever host or guest asks by ARP whether the other is still there.
account_open() {
	local before deadline=$((SECONDS + patience))
	counters "$1" || return
	until
		before=${now[*]}
		sleep 0.1
		counters "$1" || return
		[[ ${now[*]} == "$before" ]]
	do
		((SECONDS < deadline)) || fail "packets of $1 pass already" || return
	done
	echo "${now[*]}" >"$guests/account-$1"
}

# Reads what went through since account_open into array delta, in the order of
# counters(). True when tap and module agree.
account_balances() {
	local -a before
	local i
	read -ra before <"$guests/account-$1"
	counters "$1" || return
	delta=()
	for i in "${!now[@]}"; do
		delta+=($((now[i] - before[i])))
	done
	((delta[0] == delta[2] && delta[1] == delta[3] && delta[4] == delta[6] && delta[5] == delta[7]))
}

# account_close NAME PACKETS: proves that every packet and byte that crossed the tap
# since account_open went through the module, at least PACKETS each way. QEMU falls
# back to serving virtio by itself without a word, and then the module counts nothing.
# Leaves the account in array delta.
account_close() {
	local name=$1 least=$2
	delta=()
	# The two sides cannot be read at one instant, and the last answer may be on its way.
	if ! until_true $((patience / 10)) account_balances "$name"; then
		fail "tap and module disagree on $name: ${delta[*]}"
		return
	fi
	echo "through the module: ${delta[2]} packets (${delta[3]} bytes) to $name, ${delta[6]} packets (${delta[7]} bytes) from it"
	((delta[2] >= least && delta[6] >= least)) || fail "fewer than $least packets one way"
}

# A process and what it started must not outlive the script.
guests_kill() {
	local file
	for file in "$guests"/*/pid "$guests/serve.pid"; do
		if [[ -e $file ]] && ! process_is_gone "$(<"$file")"; then
			kill -KILL "$(<"$file")"
		fi
	done
	rm -rf "$guests"
}
