# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154,SC2034 # variables of lib.sh and claims.sh
#
# What QEMU lets one choose of a card. All combinations would be 384, so there is a card for
# each row of a table in which any two choices meet, all in one guest, which uses one at a time.

# interface  rx_queue_size  mrg_rxbuf  event_idx  indirect_desc  in_order  packed  queue_reset
cards='
modern        1024  on   off  off  on   on   off
modern        256   off  on   on   on   on   on
modern        256   on   off  on   off  off  off
transitional  1024  off  on   off  on   off  off
transitional  256   on   off  on   off  on   on
legacy        1024  off  off  on   off  off  on
legacy        256   on   on   off  off  on   off
legacy        256   off  on   off  on   off  on
'

# every_pair_meets: in the table, each choice with each choice of another column.
every_pair_meets() {
	awk '
		NF {
			for (i = 1; i <= NF; i++) {
				choices[i, $i] = 1
				for (j = i + 1; j <= NF; j++) met[i, $i, j, $j] = 1
			}
		}
		END {
			for (one in choices) for (other in choices) {
				split(one, a, SUBSEP)
				split(other, b, SUBSEP)
				if (a[1] < b[1] && !((a[1], a[2], b[1], b[2]) in met)) {
					print "column " a[1] " " a[2] " never meets column " b[1] " " b[2]
					missing = 1
				}
			}
			exit missing
		}' <<<"$cards"
}

card_address() {
	echo "52:54:00:12:35:0$1"
}

# Card 0 is the guest's usual one, which nothing is asked of.
boots_with_all_cards() {
	local number=0 options='' row device
	while read -r -a row; do
		if ((${#row[@]} == 0)); then
			continue
		fi
		number=$((number + 1))
		device=virtio-net-pci,netdev=net$number,romfile=,mac=$(card_address $number)
		case ${row[0]} in
		modern) device+=,disable-legacy=on,disable-modern=off ;;
		transitional) device+=,disable-legacy=off,disable-modern=off ;;
		legacy) device+=,disable-legacy=off,disable-modern=on ;;
		esac
		device+=,rx_queue_size=${row[1]},mrg_rxbuf=${row[2]},event_idx=${row[3]},indirect_desc=${row[4]}
		device+=,in_order=${row[5]},packed=${row[6]},queue_reset=${row[7]}
		tap_start "card$number"
		options+=" -netdev tap,id=net$number,ifname=card$number,script=no,downscript=no,vhost=on -device $device"
	done <<<"$cards"
	# A receive ring of 1024 chains, each with room for 64 KiB, takes 70 MiB.
	memory=512 boots many 1 '' ''
	echo "$number cards"
}

bit() {
	if [[ $1 == on ]]; then
		echo 1
	else
		echo 0
	fi
}

# card_passes NUMBER ROW...: the guest uses this card, with what was chosen.
card_passes() {
	local card=card$1 row=("${@:2}") modern=on order reset
	order=${row[5]} reset=${row[7]}
	if [[ ${row[0]} == legacy ]]; then
		# Legacy drivers see the first 32 features.
		modern=off order=off reset=off
	fi
	guest_run many "choose $(card_address "$1")"
	# vhost has no packed rings, so that the driver is not offered any.
	has_features many "$VERSION_1=$(bit $modern)" "$MRG_RXBUF=$(bit "${row[2]}")" \
		"$EVENT_IDX=$(bit "${row[3]}")" "$INDIRECT_DESC=$(bit "${row[4]}")" \
		"$IN_ORDER=$(bit "$order")" "$RING_PACKED=0" "$RING_RESET=$(bit "$reset")"
	udp many 300
	tcp many $((1 << 20))
}

all_cards_go_away() {
	local number
	stops many
	for number in {1..8}; do
		ip link delete dev "card$number"
		no_device_of "card$number"
	done
}

claim "the module takes vhost_net's place" load_module
claim "any two choices meet in the table of cards" every_pair_meets
claim "a guest boots with a card of each row" boots_with_all_cards
number=0
while read -r -a row; do
	if ((${#row[@]} > 0)); then
		number=$((number + 1))
		claim "card $number (${row[0]}, rx_queue_size ${row[1]}, mrg_rxbuf ${row[2]}, event_idx ${row[3]}, indirect_desc ${row[4]}, in_order ${row[5]}, packed ${row[6]}, queue_reset ${row[7]}): traffic passes both ways" \
			card_passes "$number" "${row[@]}"
	fi
done <<<"$cards"
claim "the devices go away with QEMU" all_cards_go_away
claim "the module is unloaded" unload_module
