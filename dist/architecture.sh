# Sourced by build.sh and dist.sh. ARCH=amd64|arm64 (default: this machine's) gives `architecture`, as images name it, `triple`, as
# Rust does, `gnu`, the prefix of the compiler's and the linker's names, and `runner`: a command in front of a program of that
# architecture, to run it here.
machine() { case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac; }
architecture=${ARCH:-$(machine)}
case $architecture in
amd64) cpu=x86_64 ;;
arm64) cpu=aarch64 ;;
*) echo "dist: ARCH is $architecture: amd64 or arm64" >&2; exit 1 ;;
esac
triple=$cpu-unknown-linux-gnu gnu=$cpu-linux-gnu- runner=()
if [ "$architecture" = "$(machine)" ]; then gnu=
else
  for tool in "${gnu}gcc" "qemu-$cpu-static"; do
    command -v "$tool" >/dev/null || {
      echo "dist: no $tool in PATH, for $architecture: apt-get install gcc-${cpu/_/-}-linux-gnu libc6-dev-$architecture-cross qemu-user-static" >&2; exit 1
    }
  done
  runner=("qemu-$cpu-static")
fi
