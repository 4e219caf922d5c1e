# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts: where things are, and which tools build them.
# Kernel, module and crates must agree on every one of these.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck disable=SC2034 # used by the scripts that source this file
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vhost-iocm

# Debian 12 and 13 both carry this LLVM, and KASAN together with Rust needs Clang.
llvm_version=19
export LIBCLANG_PATH=/usr/lib/llvm-$llvm_version/lib

# The administrator's directories hold modprobe and ip; cargo's hold bindgen.
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# rustup finds rust-toolchain.toml from the checkout only, and kernels are built
# outside of it.
if [[ -z ${RUSTUP_TOOLCHAIN:-} ]] && command -v rustup >/dev/null; then
	RUSTUP_TOOLCHAIN=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$checkout/rust-toolchain.toml")
	export RUSTUP_TOOLCHAIN
fi

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# The mirror that this machine is set up to use, so that proxies and local
# mirrors are honoured.
debian_mirror() {
	local mirror
	# shellcheck disable=SC2016 # apt-get expands this
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 2>/dev/null |
		sed -n '/^Debian Debian /{s/^Debian Debian //;p;q}')
	echo "${mirror:-http://deb.debian.org/debian/}"
}
