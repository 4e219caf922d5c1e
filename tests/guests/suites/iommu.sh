# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154,SC2016 # variables of lib.sh and claims.sh; some are expanded in the guest
#
# Guests whose card is behind an IOMMU of QEMU's: the module asks QEMU for each translation.

# boots_behind NAME NUMBER IOMMU [MACHINE]: IOMMU is an option -device of QEMU.
boots_behind() {
	# Only what is behind a port of PCI Express has address translation services.
	machine=q35${4:+,$4} options="-device $3 -device pcie-root-port,id=port1,chassis=1" \
		words="intel_iommu=on" \
		boots "$1" "$2" "$VERSION_1=1 $ACCESS_PLATFORM=1" bus=port1,iommu_platform=on,ats=on
	# The guest's kernel must translate, and not only be able to.
	guest_run "$1" 'cat "/sys/class/net/$interface/device/../iommu_group/type"' | tee "$guests/type"
	grep -q DMA "$guests/type"
}

# behind NAME IOMMU MACHINE: the claims.
behind() {
	local name=$1
	claim "$name: a guest boots behind it" boots_behind "$name" 1 "$2" "$3"
	claim "$name: UDP passes both ways" udp "$name" 500
	claim "$name: TCP passes both ways" tcp "$name" $((2 << 20))
	claim "$name: traffic passes after each reload of the guest's driver" reloads "$name" 20
	claim "$name: the device goes away with QEMU" stops "$name"
}

claim "the module takes vhost_net's place" load_module
behind intel intel-iommu,device-iotlb=on,intremap=off "''"
behind remapping intel-iommu,device-iotlb=on,intremap=on kernel-irqchip=split
behind virtio virtio-iommu-pci "''"
claim "the module is unloaded" unload_module
