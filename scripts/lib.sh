# What the scripts share: the tools of this machine. Sourced, never run.
# shellcheck shell=bash

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        command -v sudo >/dev/null || fail "need root to run: $*; there is no sudo here"
        sudo "$@"
    fi
}

# Why we install a package, for the one who wonders.
reason_for() {
    case $1 in
        gcc) echo 'compiles SQLite and links' ;;
        fuse3) echo 'mounts and unmounts for whoever is not root' ;;
        ipxe | grub-rescue-pc) echo 'ships a real ISO to read and boot' ;;
        xorriso | genisoimage | udftools) echo 'makes ISOs' ;;
        osinfo-db) echo 'knows which media are whose' ;;
        qemu-system-x86 | ovmf) echo 'boots an ISO from the mount' ;;
        curl) echo 'reads over HTTP, and stores files through the mount' ;;
        qemu-utils | rsync) echo 'stores files through the mount' ;;
        fio) echo 'writes and verifies' ;;
        e2fsprogs) echo 'makes small and read-only volumes' ;;
        btrfs-progs) echo 'makes volumes with quotas' ;;
        iproute2 | nftables) echo 'makes hosts with networks of their own' ;;
        attr) echo 'shows extended attributes' ;;
        libvirt-daemon | libvirt-clients) echo 'makes a storage pool of the library' ;;
        faketime) echo 'sets clocks wrong' ;;
        *) echo 'used by this script' ;;
    esac
}

apt_get() {
    # Another apt may be at work, as at the first boot of a cloud machine.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

# ensure_packages PKG…: installs those Debian packages that are missing.
ensure_packages() {
    local package missing=()
    for package in "$@"; do
        if [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            missing+=("$package")
        fi
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        fail "these Debian packages, or what they hold, must be installed by hand: ${missing[*]}"
    echo 'Installing Debian packages that are missing:'
    for package in "${missing[@]}"; do
        printf '  %-18s %s\n' "$package" "$(reason_for "$package")"
    done
    apt_get update || echo 'apt-get update failed; trying with the lists that are here'
    apt_get install -y --no-install-recommends "${missing[@]}" || {
        echo 'Trying once more'
        sleep 5
        apt_get install -y --no-install-recommends "${missing[@]}"
    } || fail "cannot install ${missing[*]}"
}

ensure_cargo() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null || fail 'there is no cargo; install Rust with rustup'
}

# ensure_rust: cargo, with its formatter and its lints.
ensure_rust() {
    ensure_cargo
    local missing=()
    cargo fmt --version >/dev/null 2>&1 || missing+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || missing+=(clippy)
    ((${#missing[@]})) || return 0
    command -v rustup >/dev/null || fail "cargo lacks ${missing[*]}, and there is no rustup to add it"
    rustup component add "${missing[@]}"
}

# ensure_crate NAME VERSION: a program of the crates' registry, built once, in tools/bin of the
# directory that cargo builds in.
ensure_crate() {
    local name=$1 version=$2 tools
    tools=$(realpath -m -- "${CARGO_TARGET_DIR:-target}")/tools
    [[ $("$tools/bin/$name" --version 2>/dev/null) != "$name $version" ]] || return 0
    echo "Building $name $version"
    cargo install --quiet --locked --version "$version" --force \
        --root "$tools" --target-dir "$tools/build" "$name" ||
        fail "cannot build $name $version; the registry of crates has to be reachable once"
    rm -rf -- "$tools/build"
}
