# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of lib.sh
#
# The monitor's unit under a systemd that runs (scripts/vm --systemd): all that the monitor does it can do
# within the unit's sandbox, and systemd starts it again.

# shellcheck source=tests/guests/cores.sh
source "$checkout/tests/guests/cores.sh"

# What can be seen within the sandbox, wherever the checkout is.
place=/run/iocm-unit
units=/run/systemd/system

# wants CORES: what the configuration says from the next time on that it is read.
wants() {
	"$iocm" config show | sed -e "s/^cores_min = .*/cores_min = $1/; s/^cores_max = .*/cores_max = $1/" \
		-e "s/^cpus = .*/cpus = [$last]/" >"$place/iocm.toml"
}

# property NAME: what systemd says of the unit.
property() {
	systemctl show --property "$1" --value iocm.service
}

property_is() {
	[[ $(property "$1") == "$2" ]]
}

unit_starts() {
	mkdir -p "$place" "$units/iocm.service.d"
	cp "$iocm" "$place"
	wants 1
	cp "$checkout/monitor/iocm.service" "$units"
	cat >"$units/iocm.service.d/test.conf" <<-EOF
		[Unit]
		DefaultDependencies=no
		[Service]
		ExecStart=
		ExecStart=$place/iocm monitor --config $place/iocm.toml
		StandardOutput=append:$place/log
		StandardError=inherit
	EOF
	systemctl daemon-reload
	# Returns when the unit says that it is ready.
	timeout "$patience" systemctl start iocm.service || {
		systemctl --no-pager status iocm.service
		cat "$place/log"
		fail "the unit does not start"
	}
	property_is ActiveState active
}

# The only capability is CAP_SYS_NICE, number 23.
is_confined() {
	local pid status
	pid=$(pgrep --full "^$place/iocm monitor")
	status=/proc/$pid/status
	grep -E '^(CapEff|NoNewPrivs|Seccomp):' "$status"
	[[ $(sed -n 's/^CapEff:\t//p' "$status") == 0000000000800000 ]]
	[[ $(sed -n 's/^NoNewPrivs:\t//p' "$status") == 1 && $(sed -n 's/^Seccomp:\t//p' "$status") == 2 ]]
}

is_on_core() {
	on_core alice bob && off_core
}

takes_the_core() {
	until_true "$patience" is_on_core || {
		cat "$place/log"
		fail "the guests are not served on CPU $last, or run there"
	}
}

is_as_before() {
	is_idle && as_before
}

is_reloaded() {
	wants 0
	systemctl reload iocm.service
	until_true "$patience" is_as_before || fail "the core is kept" || return
	wants 1
	systemctl reload iocm.service
	takes_the_core
	property_is NRestarts 0
}

# True when systemd started the monitor anew, after five seconds as the unit says, and it is ready.
is_started_again() {
	property_is NRestarts 1 && property_is ActiveState active
}

is_killed() {
	local before
	before=$(side_core)
	systemctl kill --signal KILL iocm.service
	until_true "$patience" is_started_again || fail "it is not started again" || return
	grep "is taken over" "$place/log"
	is_on_core
	[[ $(side_core) == "$before" ]]
}

is_stopped() {
	systemctl stop iocm.service
	property_is Result success
	# A monitor that ends leaves a host that works, as it is.
	is_on_core
	"$iocm" monitor --restore
	! side_core >/dev/null || fail "there is still a worker on CPU $last"
	as_before || fail "guests are not where they were"
}

claim "the module takes vhost_net's place" load_module
claim "guest alice boots" boots_guest alice 1 "''" "''"
claim "guest bob boots, in a cgroup of his own" boots_in_scope bob 2 "''" "''"
claim "systemd starts the unit, which says that it is ready" unit_starts
claim "the monitor has no rights but those of the unit" is_confined
claim "it keeps a core, moves both guests' devices there, and virtual CPUs off it" takes_the_core
claim "packets pass" udp alice 500
claim "told to reload, it gives the core back, and takes it again" is_reloaded
claim "killed, it is started again and takes the core over" is_killed
claim "it is stopped, and leaves a host that works, which can be restored" is_stopped
claim "packets pass still" udp bob 500
claim "alice's device goes away with QEMU" stops alice
claim "bob's device goes away with QEMU" stops_in_scope bob
claim "the module is unloaded" unload_module
