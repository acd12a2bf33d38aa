#!/bin/bash
# An aarch64 root for other_cpus.py --cpus arm: Debian 12's Python 3.11, numpy and the runtimes.
#
#     bash experiments/benchmarks/arm_root.sh runs/arm
#
# Needs Debian 12 with qemu-user, a Python with pip, and the network; the system's own packages and
# settings stay as they are. The runtimes read /proc/cpuinfo and /sys of the host, which tell of
# another kind of CPU (onnxruntime ends in a segmentation fault then): files of that name in the
# root take their place.
set -eu
root=$(realpath -m "$1")
mkdir -p "$root/apt/lists/partial" "$root/apt/cache/archives/partial" "$root/wheels" "$root/site"
touch "$root/apt/status"
apt() {
    apt-get -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
        -o Dir::State::lists="$root/apt/lists" -o Dir::Cache="$root/apt/cache" \
        -o Dir::State::status="$root/apt/status" -o Debug::NoLocking=1 "$@"
}
apt update
(cd "$root/apt" && apt download python3.11-minimal libpython3.11-minimal python3.11 \
    libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 \
    liblzma5 libsqlite3-0 libuuid1 libgomp1 libatomic1)
for package in "$root"/apt/*.deb; do dpkg -x "$package" "$root"; done

python=${PYTHON:-.venv/bin/python}
platforms=(--platform manylinux2014_aarch64)
for glibc in 17 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" - > "$root/versions" <<'END'
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in ("numpy", "onnxruntime", "openvino")), sep="\n")
END
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --implementation cp --abi cp311 "${platforms[@]}" -d "$root/wheels" -r "$root/versions"
for wheel in "$root"/wheels/*.whl; do unzip -qo "$wheel" -d "$root/site"; done

mkdir -p "$root/proc" "$root/sys/devices/system/cpu/cpu0/regs/identification"
for cpu in 0 1; do
    printf 'processor\t: %d\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n' $cpu
done > "$root/proc/cpuinfo"
echo 0-1 > "$root/sys/devices/system/cpu/possible"
echo 0-1 > "$root/sys/devices/system/cpu/present"
echo 0x00000000413fd0c1 > "$root/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
qemu-aarch64 -L "$root" "$root/usr/bin/python3.11" -c "import platform; print(platform.machine())"
