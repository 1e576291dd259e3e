# host.sh makes the emulated machine a host for Kata, as docs/kata-host.md has it, and tests it. It runs as the child of
# the machine's first process. CUMULET_CACHE, MODULES, RELEASE, RUN_DIR and TESTS come from katahost.
set -eu
say() { printf '==> %s (up %ss)\n' "$*" "$(cut -d. -f1 /proc/uptime)"; }

# What Debian's boot would have done.
mkdir -p "/lib/modules/$(uname -r)" /tmp/cumulet-test
mount --bind "$MODULES" "/lib/modules/$(uname -r)"
mount -t tmpfs -o mode=0711 tmpfs /tmp/cumulet-test # containerd's files: an overlay does not do for them
ip link set lo up
/bin/busybox syslogd -O /run/syslog

say "modules"
modprobe -a kvm_amd vhost_vsock vhost_net tun
ls -l /dev/kvm /dev/vhost-vsock /dev/vhost-net

say "Kata's release"
mkdir -p /opt
cp -r "$RELEASE" /opt/kata

say "cisd host check"
"$RUN_DIR/cisd" host check --set control.cri.binDir="$CUMULET_CACHE/bin" \
	--set control.cri.kata.configs.qemu=/opt/kata/share/defaults/kata-containers/configuration-qemu.toml

say "tests"
cd /run
export CUMULET_KATA_HOST=1 CUMULET_REQUIRE_TOOLS=1 PATH="$CUMULET_CACHE/bin:$PATH"
"$RUN_DIR/tests" -test.v -test.run "$TESTS" -test.timeout 30m || {
	code=$?
	say "the end of the shims' log"
	tail -n 40 /run/syslog | cut -c 1-500
	exit $code
}
