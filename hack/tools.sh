#!/usr/bin/env bash
# tools.sh installs and builds what Cumulet runs beside itself: the container
# runtime, the sandboxes, the log shipper, a Kubernetes control plane and the
# images that tests and the quickstart need.
#
#   hack/tools.sh              everything
#   hack/tools.sh NAME...      some of: debian-runtime debian-test containerd
#                              cni gvisor devcluster filebeat helm versitygw
#                              oidcprovider lint images debian-kata kata-shim kata,
#                              for the benchmarks alone: distribution
#                              and for make test-kata-host alone: kata-host
#   hack/tools.sh --print-bin  print the directory of the built binaries
#   hack/tools.sh --print-cache
#                              print the cache directory
#   hack/tools.sh --prune      remove the tools that are current no more
#
# Everything built lands in a cache outside the tree, one directory for each
# tool, version and hash of what went into it, so a second run has nothing to
# do and an interrupted one resumes with the tool it was at:
#
#   ${CUMULET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cumulet}/
#     tools/NAME-VERSION-HASH/   the product of one build
#     bin/                       symlinks to the current binaries
#     images/                    symlinks to the current image archives
#     kata/                      symlinks to the current guest kernel and initrd, and to a release's configurations
#     kata-host/                 symlinks to the current emulated host
#     logs/NAME.log              the last build's output
#
# A version is pinned in one place: the go.mod of the tool's own module
# (hack/NAME/go.mod), whose go.sum also pins its content.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$hack")
cache=${CUMULET_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/cumulet}
all=(debian-runtime containerd cni gvisor devcluster filebeat helm versitygw oidcprovider debian-test images debian-kata kata-shim kata lint)
# What the benchmarks measure against, and what make test-kata-host alone needs; everything is not these.
extra=(distribution kata-host)

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
die() { printf 'tools.sh: %s\n' "$*" >&2; exit 1; }

# --- Debian packages ---------------------------------------------------------

# One line for each package: its name, then a command or an absolute path
# (which may be a pattern) that shows that the machine has it, by whatever way.
packages() {
	case $1 in
	debian-runtime) cat <<-'EOF' ;;
		runc            runc
		skopeo          skopeo
		busybox-static  /bin/busybox
		iproute2        ip
		nftables        nft
		patch           patch
		procps          ps
		curl            curl
		ca-certificates /etc/ssl/certs/ca-certificates.crt
	EOF
	debian-test) cat <<-'EOF' ;;
		postgresql      /usr/lib/postgresql/*/bin/initdb
		podman          podman
		buildah         buildah
		git             git
		gcc             gcc
		libc6-dev       /usr/include/stdlib.h
	EOF
	# Debian 12's virtiofsd is in qemu-system-common, which QEMU needs anyway.
	debian-kata) cat <<-'EOF' ;;
		qemu-system-x86    qemu-system-x86_64
		qemu-system-common /usr/lib/qemu/virtiofsd
		kmod               depmod
	EOF
	esac
}

missing_packages() {
	local package probe
	while read -r package probe; do
		case $probe in
		/*) compgen -G "$probe" >/dev/null || echo "$package" ;;
		*) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$probe" >/dev/null || echo "$package" ;;
		esac
	done < <(packages "$1")
}

apt_update_once() {
	[[ -n ${apt_updated:-} ]] && return
	apt-get update -qq
	apt_updated=1
}

install_packages() {
	export DEBIAN_FRONTEND=noninteractive
	apt_update_once
	if [[ " $* " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
		# Only the server's programs are wanted, not a server at port 5432.
		apt-get install -y -qq --no-install-recommends postgresql-common
		sed -i 's/^#\? *create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
	fi
	apt-get install -y -qq --no-install-recommends "$@"
}

debian() {
	local group=$1 missing
	mapfile -t missing < <(missing_packages "$group")
	if [[ ${#missing[@]} -eq 0 ]]; then
		step "$group" "" cached
		return
	fi
	local how="apt-get install --no-install-recommends ${missing[*]}"
	[[ $(id -u) -eq 0 ]] || die "$group: root is needed for: $how"
	command -v apt-get >/dev/null || die "$group: no apt-get here; install what Debian has in: ${missing[*]}"
	step "$group" "${missing[*]}"
	logged "$group" install_packages "${missing[@]}"
	((status == 0)) || die "$group: failed: $how (log: $cache/logs/$group.log)"
	mapfile -t missing < <(missing_packages "$group")
	[[ ${#missing[@]} -eq 0 ]] || die "$group: still missing after apt-get: ${missing[*]}"
	done_step installed
}

# --- builds -------------------------------------------------------------------

# version_of NAME: the pinned version of the tool, from its module's go.mod.
version_of() {
	local module home=$1
	case $1 in
	containerd) module=github.com/containerd/containerd/v2 ;;
	cni) module=github.com/containernetworking/plugins ;;
	gvisor) module=gvisor.dev/gvisor ;;
	devcluster) module=k8s.io/kubernetes ;;
	filebeat) module=github.com/elastic/beats/v7 ;;
	helm) module=helm.sh/helm/v4 ;;
	versitygw) module=github.com/versity/versitygw ;;
	oidcprovider) module=github.com/zitadel/oidc/v3 ;;
	lint) module=github.com/golangci/golangci-lint/v2 ;;
	kata-host) home=kata module=github.com/kata-containers/kata-containers/src/runtime ;;
	kata | kata-shim) module=github.com/kata-containers/kata-containers/src/runtime ;;
	distribution) module=github.com/distribution/distribution/v3 ;;
	images) echo v1 && return ;;
	*) die "unknown tool $1; known: ${all[*]}" ;;
	esac
	awk -v m="$module" '$1 == "require" { $1 = ""; $0 = $0 } $1 == m && $2 ~ /^v/ { print $2; exit }' "$hack/$home/go.mod"
}

# inputs_of NAME: the files that decide what the build makes.
inputs_of() {
	case $1 in
	kata-host) inputs_of kata && find "$hack/kata/host" -type f ! -name '*_test.go' \( -name '*.go' -o -name '*.toml' \) ;;
	images) find "$hack/image" "$root/cmd/pause" -type f -name '*.go' ! -name '*_test.go' && echo /bin/busybox ;;
	*) find "$hack/$1" -type f ! -name '*_test.go' ! -path "$hack/kata/host/*" \( -name '*.go' -o -name 'go.???' -o -name '*.patch' -o -name '*.yaml' \) ;;
	esac
}

# hash_of NAME: of the inputs' names and contents, the recipe and the compiler.
hash_of() {
	{
		declare -f "build_$1" go_build
		case $1 in kata | kata-host) declare -f debian_kernel ;; esac
		case $1 in kata-shim | kata-host) declare -f kata_configurations ;; esac
		echo "$goversion"
		inputs_of "$1" | LC_ALL=C sort | while read -r f; do
			printf '%s ' "${f#"$root"/}"
			sha256sum <"$f"
		done
	} | sha256sum | cut -c1-12
}

# go_build OUT [FLAG...] PACKAGE...: static, reproducible, in the current module.
go_build() {
	local out=$1
	shift
	go build -mod=readonly -trimpath -o "$out/" "$@"
}

build_containerd() {
	cd "$hack/containerd"
	local p=github.com/containerd/containerd/v2
	go_build "$1" -tags 'no_btrfs no_devmapper no_zfs' -ldflags "-s -w -X $p/version.Version=$2" \
		$p/cmd/containerd $p/cmd/containerd-shim-runc-v2 $p/cmd/ctr
}

build_cni() {
	cd "$hack/cni"
	go_build "$1" -ldflags "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$2" tool
}

# gVisor is built from a copy of its module with hack/gvisor/patches applied.
build_gvisor() {
	local b=$1/.src p
	mkdir -p "$b"
	cp "$hack"/gvisor/go.{mod,sum} "$b"
	cd "$b"
	go mod download gvisor.dev/gvisor
	cp -r "$(go list -m -f '{{.Dir}}' gvisor.dev/gvisor)" gvisor
	chmod -R u+w gvisor
	for p in "$hack"/gvisor/patches/*.patch; do
		patch -d gvisor -p1 --fuzz=0 --forward --no-backup-if-mismatch <"$p" ||
			{ echo "$p does not apply to gVisor $2"; return 1; }
	done
	go mod edit -replace gvisor.dev/gvisor=./gvisor
	go_build "$1" -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$2" gvisor.dev/gvisor/runsc gvisor.dev/gvisor/shim
	mv "$1/shim" "$1/containerd-shim-runsc-v1"
	cd "$1"
	rm -rf "$b"
}

build_devcluster() {
	cd "$hack/devcluster"
	local v=${2#v} flags="-s -w" p
	for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		flags+=" -X $p.gitVersion=$2 -X $p.gitMajor=${v%%.*} -X $p.gitMinor=$(cut -d. -f2 <<<"$v") -X $p.gitTreeState=clean"
	done
	go_build "$1" -ldflags "$flags" .
	ln -s devcluster "$1/kubectl"
}

build_filebeat() {
	cd "$hack/filebeat"
	go_build "$1" -ldflags "-s -w" .
}

build_helm() {
	cd "$hack/helm"
	go_build "$1" -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$2" tool
}

# Kata's own shim from a copy of its module, with the one file that its Makefile
# makes; everything in it is a default that a configuration file overrides. By the
# same package as the shim kata-config reads configurations, of which there are those
# of a release.
build_kata-shim() {
	local b=$1/.src p=github.com/kata-containers/kata-containers/src/runtime in
	mkdir -p "$b"
	cp -r "$hack"/kata-shim/{go.mod,go.sum,kata-config} "$b"
	cd "$b"
	go mod download $p
	cp -r "$(go list -m -f '{{.Dir}}' $p)" kata
	chmod -R u+w kata
	in=kata/pkg/katautils/config-settings.go.in
	sed -e 's|@RUNTIME_NAME@|containerd-shim-kata-v2|; s|@PROJECT_NAME@|Kata Containers|; s|@PROJECT_TYPE@|kata|' \
		-e 's|@PROJECT_URL@|https://github.com/kata-containers|; s|@PROJECT_ORG@|kata-containers|; s|@PKGRUNDIR@|/run/kata-containers|' \
		-e 's|@CONFIG_PATH@|/usr/share/defaults/kata-containers/configuration.toml|; s|@SYSCONFIG@|/etc/kata-containers/configuration.toml|' \
		-e "s|@COMMIT@|${2##*-}|; s|@VERSION@|$2|" $in >"${in%.in}"
	! grep -n '@[A-Z_]*@' "${in%.in}" || { echo "$in has names unknown to this recipe"; return 1; }
	go mod edit -replace $p=./kata
	go_build "$1" -ldflags "-s -w" $p/cmd/containerd-shim-kata-v2 ./kata-config
	mkdir "$1/configurations"
	kata_configurations kata "$2" "$1/configurations" qemu clh fc
	cd "$1"
	rm -rf "$b"
}

# kata_configurations SRC VERSION DIR NAME...: the configurations of a release, which
# is unpacked to /opt/kata, by Kata's own Makefile in SRC.
kata_configurations() {
	local src=$1 dir=$3
	echo "$2" >"$src/VERSION"
	touch "$src/.git-commit"
	shift 3
	local files=("${@/#/config/configuration-}")
	files=("${files[@]/%/.toml}")
	make -C "$src" PREFIX=/opt/kata SKIP_GO_VERSION_CHECK=y "${files[@]}"
	(cd "$src" && cp "${files[@]}" "$dir")
}

# The VM service, and what its VMs boot: Debian's kernel for virtual machines and
# an initrd of our agent and that kernel's modules.
build_kata() {
	cd "$hack/kata"
	local b=$1/.src kernel
	mkdir -p "$b"
	go_build "$1" -ldflags "-s -w" ./cmd/kata-vmservice
	go_build "$b" -ldflags "-s -w" ./cmd/kata-agent ./cmd/mkinitrd ./cmd/mkkernel
	debian_kernel "$b"
	"$b/mkkernel" -o "$1/vmlinux" "$b/root/boot/vmlinuz-$kernel"
	"$b/mkinitrd" -agent "$b/kata-agent" -modules "$b/root/lib/modules/$kernel" -o "$1/initrd.img"
	rm -rf "$b"
}

# debian_kernel DIR: downloads Debian's kernel for virtual machines and unpacks it
# to DIR/root; leaves its release in $kernel. It is not installed: this machine
# keeps its own kernel.
debian_kernel() {
	local deb
	mkdir -p "$1/deb"
	deb=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends:/ { print $2; exit }')
	if [[ -z $deb ]] || ! (cd "$1/deb" && apt-get download -q "$deb"); then
		apt-get update -q
		deb=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
		(cd "$1/deb" && apt-get download -q "$deb")
	fi
	dpkg-deb -x "$1"/deb/*.deb "$1/root"
	kernel=${deb#linux-image-}
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$1/root" "$kernel"
}

# The emulated host of make test-kata-host: its kernel with all modules, an initrd
# to boot it with, and a release of Kata as far as there is one to build: the
# configuration for QEMU by Kata's own Makefile, a guest kernel, an initrd with
# our agent.
build_kata-host() {
	cd "$hack/kata"
	local b=$1/.src release=$1/release p=github.com/kata-containers/kata-containers/src/runtime kernel
	mkdir -p "$b" "$release"/bin "$release"/libexec "$release"/share/{kata-containers,defaults/kata-containers/config.d}
	go_build "$b" -ldflags "-s -w" ./cmd/mkinitrd ./host/cmd/host-init ./host/cmd/guest-init
	go_build "$release/libexec" -ldflags "-s -w" ./host/cmd/virtiofsd
	debian_kernel "$b"
	cp "$b/root/boot/vmlinuz-$kernel" "$1/vmlinuz"
	cp -r "$b/root/lib/modules/$kernel" "$1/modules"
	"$b/mkinitrd" -agent "$b/host-init" -modules "$1/modules" -o "$1/initrd.img"
	ln -s /usr/bin/qemu-system-x86_64 "$release/bin/"
	cp "$1/vmlinuz" "$release/share/kata-containers/vmlinux.container"
	"$b/mkinitrd" -agent "$b/guest-init" -modules "$1/modules" -o "$release/share/kata-containers/kata-containers-initrd.img"
	cp -r "$(go list -m -f '{{.Dir}}' $p)" "$b/kata"
	chmod -R u+w "$b/kata"
	kata_configurations "$b/kata" "$2" "$release/share/defaults/kata-containers" qemu
	cp "$hack/kata/host/emulated.toml" "$release/share/defaults/kata-containers/config.d/"
	rm -rf "$b"
}

build_versitygw() {
	cd "$hack/versitygw"
	go_build "$1" -ldflags "-s -w" tool
}

# distribution is the peer of the registry's benchmarks: its own server.
build_distribution() {
	cd "$hack/distribution"
	go_build "$1" -ldflags "-s -w" tool
	mv "$1/registry" "$1/distribution-registry"
}

build_oidcprovider() {
	cd "$hack/oidcprovider"
	go_build "$1" -ldflags "-s -w" .
}

build_lint() {
	cd "$hack/lint"
	go_build "$1" -ldflags "-s -w -X main.version=${2#v}" tool
}

# pause.tar holds the sandbox image, busybox.tar a small base for tests.
build_images() {
	cd "$root"
	local b=$1/.src
	mkdir -p "$b"
	go_build "$b" -ldflags "-s -w" ./cmd/pause ./hack/image
	"$b/image" -o "$1/pause.tar" -tag cumulet.io/pause:v1 -user 65535:65535 -entrypoint /pause "$b/pause:/pause"
	local links=() name
	for name in $(/bin/busybox --list); do
		[[ $name == busybox ]] || links+=(-symlink "/bin/busybox:/bin/$name")
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$b/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$b/group"
	"$b/image" -o "$1/busybox.tar" -tag cumulet.io/busybox:v1 -env PATH=/bin -cmd /bin/sh "${links[@]}" \
		-dir /tmp:1777 -dir /root:0700 -dir /etc:0755 -dir /var:0755 \
		/bin/busybox:/bin/busybox "$b/passwd:/etc/passwd" "$b/group:/etc/group"
	rm -rf "$b"
}

# link_into DIR FILE...: symlinks that appear whole or not at all.
link_into() {
	local dir=$1 f
	shift
	mkdir -p "$dir"
	for f in "$@"; do
		local name=${f##*/}
		[[ $(readlink "$dir/$name" 2>/dev/null) == "../${f#"$cache"/}" ]] && continue
		ln -sfn "../${f#"$cache"/}" "$dir/.$name.$$"
		mv -T "$dir/.$name.$$" "$dir/$name"
	done
}

publish() {
	case $1 in
	images) link_into "$cache/images" "$2"/*.tar ;;
	kata)
		link_into "$cache/bin" "$2/kata-vmservice"
		link_into "$cache/kata" "$2/vmlinux" "$2/initrd.img"
		;;
	kata-shim)
		link_into "$cache/bin" "$2"/{containerd-shim-kata-v2,kata-config}
		link_into "$cache/kata" "$2/configurations"
		;;
	kata-host) link_into "$cache/kata-host" "$2"/* ;;
	*) link_into "$cache/bin" "$2"/* ;;
	esac
}

build() {
	local name=$1 version dir tmp
	version=$(version_of "$name")
	[[ -n $version ]] || die "$name: no version in hack/$name/go.mod"
	mkdir -p "$cache/tools" "$cache/tmp" "$cache/logs"
	# Two runs at once build a tool once: the second waits, then finds it.
	exec 9>"$cache/tools/.$name.lock"
	flock -n 9 || { step "$name" "$version"; flock 9; done_step "waited for another run"; stepno=$((stepno - 1)); }
	dir=$cache/tools/$name-$version-$(hash_of "$name")
	if [[ -d $dir ]]; then
		publish "$name" "$dir"
		step "$name" "$version" cached
	else
		[[ $goversion != none ]] || die "$name: Go is needed (https://go.dev/dl)"
		step "$name" "$version"
		tmp=$cache/tools/.$name.partial
		rm -rf "$tmp"
		mkdir "$tmp"
		logged "$name" "build_$name" "$tmp" "$version"
		((status == 0)) || die "$name: the build failed (log: $cache/logs/$name.log)"
		mv -T "$tmp" "$dir"
		publish "$name" "$dir"
		done_step built
	fi
	exec 9>&-
}

# prune removes every build that no symlink leads to.
prune() {
	local dir current
	current=$(find "$cache/bin" "$cache/images" "$cache/kata" "$cache/kata-host" -type l -printf '%l\n' 2>/dev/null)
	for dir in "$cache"/tools/*/; do
		dir=${dir%/}
		[[ $current == *"/${dir##*/}/"* || ! -d $dir ]] || { echo "removing ${dir##*/}" && rm -rf "$dir"; }
	done
}

# --- progress -----------------------------------------------------------------

stepno=0
# step NAME WHAT [cached]: begins a step's line, or is all of it.
step() {
	stepno=$((stepno + 1))
	line="[$stepno/$total] $1${2:+ $2}"
	began=$SECONDS
	if [[ ${3:-} == cached ]]; then
		echo "$line cached"
	elif [[ -t 1 ]]; then
		printf '%s … ' "$line"
	else
		echo "$line …"
	fi
}
done_step() {
	[[ -t 1 ]] && printf '\r\033[K'
	echo "$line … $1 in $((SECONDS - began))s"
}

# logged NAME COMMAND...: runs the command with its output in the log; shows
# that it is alive, and the end of the log when it fails. Its exit code is left
# in $status: called in a condition (`logged x || y`), bash would ignore set -e
# in the command, too.
logged() {
	local log=$cache/logs/$1.log pid
	shift
	status=0
	mkdir -p "$cache/logs"
	(set -e; "$@") >"$log" 2>&1 </dev/null &
	pid=$!
	# shellcheck disable=SC2064
	trap "kill $pid 2>/dev/null; exit 130" INT TERM
	while kill -0 $pid 2>/dev/null; do
		sleep 0.2
		if ((SECONDS > began)) && [[ -t 1 ]]; then
			printf '\r%s … %ds ' "$line" $((SECONDS - began))
		elif (((SECONDS - began) % 60 == 59)); then
			echo "$line … $((SECONDS - began))s" && sleep 1
		fi
	done
	wait $pid || status=$?
	trap - INT TERM
	((status == 0)) || { echo; tail -n 25 "$log"; } >&2
}

# --- main -----------------------------------------------------------------------

names=()
for arg in "$@"; do
	case $arg in
	--print-bin) echo "$cache/bin" && exit ;;
	--print-cache) echo "$cache" && exit ;;
	--prune) prune && exit ;;
	-h | --help) usage && exit ;;
	-*) die "unknown option $arg (see --help)" ;;
	*)
		[[ " ${all[*]} ${extra[*]} " == *" $arg "* ]] || die "unknown tool $arg; known: ${all[*]} ${extra[*]}"
		names+=("$arg")
		;;
	esac
done
[[ ${#names[@]} -gt 0 ]] || names=("${all[@]}")
total=${#names[@]}

export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOTMPDIR=$cache/tmp
unset GOOS GOARCH GOWORK
mkdir -p "$GOTMPDIR"
goversion=$(go env GOVERSION GOARCH 2>/dev/null | tr '\n' ' ' || true)
goversion=${goversion:-none}

for name in "${names[@]}"; do
	case $name in
	debian-*) debian "$name" ;;
	*) build "$name" ;;
	esac
done
