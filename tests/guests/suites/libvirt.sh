# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # variables of tests/guests/run and claims.sh
#
# A guest that libvirt defines, starts and ends. libvirt opens the node itself and hands it to QEMU; it does
# so for guests with KVM only.

vm=customer
domain=$guests/$vm/domain.xml
# What is changed, and where libvirt writes: the root file system is read-only.
changed=(/etc/libvirt /etc/passwd)
written=(/var/lib/libvirt /var/log /var/cache)

libvirt_starts() {
	local path
	for path in "${changed[@]}"; do
		mkdir -p "$guests/root/${path%/*}"
		cp -a "$path" "$guests/root/$path"
		mount --bind "$guests/root/$path" "$path"
	done
	for path in "${written[@]}"; do
		mount -t tmpfs tmpfs "$path"
		mkdir -p "$path/libvirt/qemu" "$path/qemu"
	done
	# Packages of Debian make this user, who need not be used.
	if ! getent passwd libvirt-qemu >/dev/null; then
		echo "libvirt-qemu:x:64055:$(id -g nobody)::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
	fi
	cat >>/etc/libvirt/qemu.conf <<-EOF
		user = "root"
		group = "root"
		security_driver = "none"
		cgroup_controllers = []
		namespaces = []
		stdio_handler = "file"
	EOF
	libvirtd --daemon
	until_true "$patience" virsh --quiet list
}

guest_of_libvirt_boots() {
	local file=$guests/$vm/control
	mkdir "$guests/$vm"
	mkfifo "$file.in" "$file.out"
	echo "$subnet.11:$port" >"$guests/$vm/address"
	cat >"$domain" <<-EOF
		<domain type="kvm">
			<name>$vm</name>
			<memory unit="MiB">128</memory>
			<vcpu>1</vcpu>
			<os>
				<type arch="x86_64" machine="pc">hvm</type>
				<loader type="rom" readonly="yes">/usr/share/qemu/qboot.rom</loader>
				<kernel>$VHOST_IOCM_GUEST_KERNEL</kernel>
				<initrd>$image</initrd>
				<cmdline>console=ttyS0 quiet panic=-1 nohz=off highres=off no_timer_check address=$subnet.11/24 mtu=1500</cmdline>
			</os>
			<features><acpi/></features>
			<cpu mode="host-passthrough"><feature policy="disable" name="tsc-deadline"/></cpu>
			<devices>
				<emulator>$(command -v qemu-system-x86_64)</emulator>
				<serial type="file"><source path="$guests/$vm/console"/></serial>
				<channel type="pipe"><source path="$file"/><target type="virtio" name="control"/></channel>
				<interface type="bridge">
					<source bridge="$bridge"/>
					<target dev="$vm"/>
					<model type="virtio"/>
					<driver name="vhost"/>
					<rom enabled="no"/>
				</interface>
				<controller type="usb" model="none"/>
				<memballoon model="none"/>
			</devices>
		</domain>
	EOF
	ln -s "/var/log/libvirt/qemu/$vm.log" "$guests/$vm/qemu"
	# For those that the emulated machine loses see guest_start.
	for _ in 1 2 3; do
		virsh --quiet create "$domain" || {
			cat "$guests/$vm/qemu"
			fail "libvirt does not start the guest"
		}
		cp "/run/libvirt/qemu/$vm.pid" "$guests/$vm/pid"
		if guest_wait_ready "$vm"; then
			if [[ $stock ]]; then
				served_by_stock "$vm"
			else
				served_by_module "$vm"
			fi
			return
		fi
		virsh --quiet destroy "$vm"
		emulated || break
		: >"$guests/$vm/qemu"
	done
	fail "the guest does not come up"
}

# As libvirt calls it.
is_known_by_name() {
	local name
	name=$("$checkout/target/release/iocm" status --json | grep -oP '"vm": ?"\K[^"]*')
	[[ $name == "$vm" ]] || fail "iocm calls it '$name'"
}

libvirt_ends_it() {
	virsh --quiet destroy "$vm"
	until_true "$patience" no_device_of "$vm"
	[[ ! -e /sys/class/net/$vm ]]
}

libvirt_ends() {
	local pid path
	pid=$(</run/libvirtd.pid)
	kill "$pid"
	until_true "$patience" process_is_gone "$pid"
	for path in "${changed[@]}" "${written[@]}"; do
		umount "$path"
	done
}

if [[ ! -e /dev/kvm ]] || ! command -v libvirtd virsh >/dev/null; then
	echo "KTAP version 1"
	echo "1..1"
	echo "ok 1 guests of libvirt # SKIP needs KVM, and Debian's libvirt-daemon-driver-qemu and libvirt-clients"
	exit 4
fi
claim "the module takes vhost_net's place" load_module
claim "libvirt starts" libvirt_starts
claim "a guest of libvirt boots on the module" guest_of_libvirt_boots
claim "UDP passes both ways" udp "$vm" 500
claim "TCP passes both ways" tcp "$vm" $((2 << 20))
if [[ ! $stock ]]; then
	claim "iocm knows it by its name" is_known_by_name
fi
claim "the device and the tap go when libvirt ends it" libvirt_ends_it
claim "libvirt ends" libvirt_ends
claim "the module is unloaded" unload_module
