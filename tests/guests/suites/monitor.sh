# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of lib.sh
#
# The monitor with real guests: it follows traffic that steps from nothing to all that there is and
# back, and is killed in the middle of what it does. Guest alice has no cgroup of her own, so her
# threads leave a CPU by their affinity; bob has one, as libvirt makes it, and leaves by its cpuset.

# shellcheck source=tests/guests/cores.sh
source "$checkout/tests/guests/cores.sh"

monitor=$guests/monitor
# How often the monitor is killed.
kills=10

# monitor_starts FEWEST MOST: starts a monitor that keeps so many cores. Variable told says where it
# tells of itself. The defaults do not fit an emulated machine: its guests are too slow to have work
# for a core, and what they have is served late wherever it is served. So neither ages count here nor
# how busy a worker would be, and a guest's notification is said to cost it a tenth of a second, of
# which a worker saves all however few packets there are: it is traffic that decides.
monitor_starts() {
	mkdir -p "$monitor"
	"$iocm" config show | sed \
		-e "s/^cores_min = .*/cores_min = $1/; s/^cores_max = .*/cores_max = $2/" \
		-e "s/^cpus = .*/cpus = [$last]/" \
		-e 's/^age_us = .*/age_us = 1000000/' \
		-e 's/^utilisation = .*/utilisation = 100.0/' \
		-e 's/^notification_ns = .*/notification_ns = 100000000/' \
		-e 's/^poll_rate = .*/poll_rate = 0/' >"$monitor/iocm.toml"
	"$iocm" monitor --config "$monitor/iocm.toml" >"${told:-$monitor/log}" 2>&1 &
	echo $! >"$monitor/pid"
	disown
}

# Waits until the monitor's log has a line with these words.
monitor_says() {
	until_true "$patience" grep -q -e "$1" "$monitor/log" && return
	cat "$monitor/log"
	fail "the monitor did not say '$1'"
}

# monitor_ends [SIGNAL]
monitor_ends() {
	kill -"${1:-TERM}" "$(guest_pid monitor)"
	until_true "$patience" process_is_gone "$(guest_pid monitor)" || fail "the monitor does not end"
}

watches_an_idle_host() {
	local end
	monitor_starts 0 1
	monitor_says "the monitor watches"
	until_true "$patience" is_idle
	# Thirty intervals.
	end=$((SECONDS + 3))
	while ((SECONDS < end)); do
		is_idle || fail "a core was taken without traffic"
		sleep 0.1
	done
	as_before
}

takes_the_core() {
	full_traffic
	until_true "$patience" on_core alice bob || {
		cat "$monitor/log"
		fail "the guests are not served on CPU $last"
	}
	monitor_says "keep CPU $last for I/O"
}

# served NAME: packets that the guest's virtqueues had, and slices of their home thread.
served() {
	local of
	of=$(device "$1")
	of=$class/vq/vq.${of#d.}
	echo "$(($(<"$of.0/handled_packets") + $(<"$of.1/handled_packets")))" \
		"$(($(<"$of.0/home_works") + $(<"$of.1/home_works")))"
}

# True when many packets of both guests went through the worker on the last CPU, and none elsewhere.
served_on_core() {
	local guest worker busy packets home packets_before home_before
	on_core alice bob && off_core || return
	worker=$(side_core) || return
	busy=$(value "worker/$worker" busy_ns)
	for guest in alice bob; do
		served "$guest" >"$guests/$guest/served"
	done
	sleep 1
	for guest in alice bob; do
		read -r packets_before home_before <"$guests/$guest/served"
		read -r packets home <<<"$(served "$guest")"
		echo "$guest: $((packets - packets_before)) packets in a second, $((home - home_before)) slices at home"
		((packets - packets_before >= 50 && home == home_before)) || return
	done
	busy=$(($(value "worker/$worker" busy_ns) - busy))
	echo "$worker was busy for $((busy / 1000000)) ms"
	((busy > 0)) && on_core alice bob
}

gives_the_core_back() {
	until_true "$patience" is_idle || {
		cat "$monitor/log"
		fail "the core is not given back"
	}
	until_true "$patience" as_before || fail "guests are not where they were"
}

# Both changes stand in the log with their reasons, the one before the other.
log_tells() {
	local change line number before=0
	for change in "keep CPU $last for I/O" "move d\.[0-9]* to the new worker on CPU $last" \
		"move d\.[0-9]* to its home thread" "give the CPU of w\.[0-9]* back"; do
		line=$(tail -n "+$((before + 1))" "$monitor/log" | grep -n -m 1 "action=$change") ||
			fail "the log does not say '$change'" || return
		number=${line%%:*}
		before=$((before + number))
		echo "${line#*:}"
		[[ $line =~ reason=.*[a-z] ]] || fail "no reason"
	done
}

# What the monitor's journal says of the core.
under_way() {
	grep -m 1 -o 'taking\|taken\|returning' /run/iocm/journal.json || echo nothing
}

# Each monitor begins to take the core or to give it back, and is killed at a random instant within
# 65 ms of that.
killed() {
	local i cores line word unfinished=0 told=$monitor/pipe out end
	mkfifo "$told"
	exec {out}<>"$told"
	for ((i = 1; i <= kills; i++)); do
		# What is not finished is undone, whatever is wanted.
		case $(under_way) in
		nothing) cores=1 ;;
		taken) cores=0 ;;
		*) cores=$((RANDOM % 2)) ;;
		esac
		monitor_starts "$cores" "$cores"
		: >"$monitor/log"
		until [[ ${line:-} == *"a change"* ]]; do
			read -r -t "$patience" -u "$out" line || fail "no change: $(<"$monitor/log")"
			echo "$line" >>"$monitor/log"
		done
		# A sleep would take longer than all that there is to be interrupted. Short times are as
		# likely as long ones, as it takes a millisecond here and fifty there.
		end=$((${EPOCHREALTIME/./} + RANDOM * 2 % (1 << RANDOM % 17)))
		while ((${EPOCHREALTIME/./} < end)); do
			:
		done
		monitor_ends KILL
		word=$(under_way)
		if [[ $word == taking || $word == returning ]]; then
			unfinished=$((unfinished + 1))
		fi
		echo "kill $i, on the way to $cores cores: $word"
		packets_pass || fail "no packet passes after kill $i"
		# What it had to say still.
		while read -r -t 0.01 -u "$out" line; do
			:
		done
		line=
	done
	exec {out}>&-
	rm "$told"
	echo "$unfinished of $kills monitors were killed before they were finished"
	# The next one takes over whatever is there.
	told=$monitor/log monitor_starts 1 1
	until_true "$patience" on_core alice bob || {
		cat "$monitor/log"
		fail "the monitor does not recover"
	}
	until_true "$patience" off_core || fail "guests are on the core"
}

# Packets of both guests pass, sent by what runs already.
packets_pass() {
	local guest before
	for guest in alice bob; do
		before=$(served "$guest")
		until_true "$patience" more_served "$guest" "${before% *}" || return
	done
}

more_served() {
	local now
	now=$(served "$1")
	((${now% *} >= $2 + 10))
}

restores() {
	monitor_ends
	"$iocm" monitor --restore
	! side_core >/dev/null || fail "there is still a worker on CPU $last"
	as_before || fail "guests are not where they were"
}

# Polled as long as there is traffic: a worker that serves a guest needs no notifications then.
claim "the module takes vhost_net's place" load_module poll=1 poll_idle_us=100000
claim "guest alice boots" boots_guest alice 1 "''" "''"
claim "guest bob boots, in a cgroup of his own" boots_in_scope bob 2 "''" "''"
claim "without traffic the monitor keeps no core, and home threads serve" watches_an_idle_host
claim "under full traffic it keeps a CPU, and moves both guests' devices there" takes_the_core
claim "their packets are served by the worker there, and virtual CPUs are off it" until_true "$patience" served_on_core
claim "no packet was lost, duplicated or reordered meanwhile" traffic_ends
claim "without traffic the CPU is given back, and all threads are where they were" gives_the_core_back
claim "the log says what was done, and why" log_tells
claim "the monitor ends when it is told to" monitor_ends
claim "traffic begins anew" full_traffic
claim "$kills monitors are killed in the middle of changes, and the next one recovers" killed
claim "no packet was lost, duplicated or reordered by that" traffic_ends
claim "everything is undone in the end" restores
claim "alice's device goes away with QEMU" stops alice
claim "bob's device goes away with QEMU" stops_in_scope bob
claim "the module is unloaded" unload_module
