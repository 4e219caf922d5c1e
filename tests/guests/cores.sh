# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154,SC2034 # variables of lib.sh, and for the suites
#
# Sourced by the suites about the monitor: where two guests and the workers of their devices are. Guest
# alice has no cgroup of her own, so her threads leave a CPU by their affinity; bob has one, as libvirt
# makes it, and leaves by its cpuset.

iocm=$checkout/target/release/iocm
scope=/sys/fs/cgroup/bob.scope
# The only CPU that the monitor may take, and those that are left to guests then.
last=$(($(nproc) - 1))
others=0
if ((last > 1)); then
	others=0-$((last - 1))
fi

# Prints the worker that has the last CPU.
side_core() {
	local file
	for file in "$class"/worker/w.*/cpu; do
		# It may be removed meanwhile.
		if [[ $(cat "$file" 2>/dev/null) == "$last" ]]; then
			basename "${file%/cpu}"
			return
		fi
	done
	return 1
}

# What the module calls the guest's device.
device() {
	echo "$(<"$guests/$1/device")"
}

# True when no core is kept and the guests' devices are served by their home threads.
is_idle() {
	! side_core >/dev/null &&
		[[ $(<"$class/dev/$(device alice)/home") == 1 && $(<"$class/dev/$(device bob)/home") == 1 ]]
}

# on_core GUEST...: true when the devices of all of them are served on the last CPU.
on_core() {
	local guest device worker
	worker=$(side_core) || return
	for guest; do
		device=$(device "$guest")
		[[ $(<"$class/dev/$device/worker") == "$worker" && $(<"$class/dev/$device/home") == 0 ]] || return
	done
}

# placed CPUS TEXT: true when all of alice's threads may run on these CPUs, and bob's cpuset says
# TEXT, which means the same.
placed() {
	local file
	for file in /proc/"$(guest_pid alice)"/task/*/status /proc/"$(guest_pid bob)"/task/*/status; do
		# Threads of a pool come and go.
		[[ ! -e $file || $(sed -n 's/^Cpus_allowed_list:\t//p' "$file") == "$1" ]] || return
	done
	[[ $(<"$scope/cpuset.cpus") == "$2" ]]
}

# Where everybody is while the core is kept, and while it is not.
off_core() {
	placed "$others" "$others"
}

as_before() {
	placed "0-$last" ""
}

boots_guest() {
	boots "$@"
	device_of "$1" >"$guests/$1/device"
}

boots_in_scope() {
	boots_guest "$@"
	mkdir "$scope"
	guest_pid "$1" >"$scope/cgroup.procs"
}

# As many packets as there can be, numbered, from both guests to the host and back.
full_traffic() {
	local guest
	for guest in alice bob; do
		traffic_opens "$guest"
		guest_run "$guest" "background traffic udp --to $host --size 1000"
	done
}

traffic_ends() {
	local guest
	for guest in alice bob; do
		guest_run "$guest" stop
		traffic_closes "$guest" 100
	done
}

stops_in_scope() {
	stops "$1"
	rmdir "$scope"
}
