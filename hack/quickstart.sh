#!/usr/bin/env bash
# quickstart.sh up|demo|down|status: the whole platform on this machine.
#
#   up      installs and builds what is missing, starts a Kubernetes control plane (or uses KUBECONFIG's cluster),
#           starts `cisd up`, runs the demo and leaves all of it running
#   demo    runs the demo again
#   down    ends every instance, stops everything and removes all state
#   status  what runs
#
#   STATE=/var/lib/cumulet   where everything is kept
#   SANDBOX=                 kata, gvisor or runc for the demo's pods; default the strongest that this machine supports.
#                            kata on a machine without hardware virtualisation runs its virtual machines by emulation
#                            (hack/kata): the real thing, slow, and no boundary to rely on
#   KUBECONFIG=              a cluster of your own, that can reach this machine at NODE_ADDRESS
#   NODE_ADDRESS=127.0.0.1   where the cluster's API server reaches this machine
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cd "$root"

STATE=${STATE:-/var/lib/cumulet}
NODE_ADDRESS=${NODE_ADDRESS:-127.0.0.1}
own=${KUBECONFIG:-}
registry=127.0.0.1:5000
api=http://127.0.0.1:8440
bin=$("$here/tools.sh" --print-bin)
cache=$("$here/tools.sh" --print-cache)
config=$STATE/cisd.yaml
kubeconfig=${own:-$STATE/cluster/admin.kubeconfig}
session=$STATE/demo/session.json

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }
alive() { [[ -s $STATE/$1.pid ]] && kill -0 "$(cat "$STATE/$1.pid")" 2>/dev/null; }

# until_ok SECONDS WHAT COMMAND...: waits for the command to succeed, and says what it waits for.
until_ok() {
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	printf '    waiting for %s ' "$what"
	until "$@" >/dev/null 2>&1; do
		if ((SECONDS > deadline)); then
			echo
			"$@" || true
			die "$what: not in time; logs are in $STATE/log"
		fi
		printf .
		sleep 0.5
	done
	echo ' ok'
}

# background NAME COMMAND...: starts a command that outlives this script.
background() {
	local name=$1
	shift
	alive "$name" && return
	setsid nohup "$@" >>"$STATE/log/$name.log" 2>&1 </dev/null &
	echo $! >"$STATE/$name.pid"
}

# stop NAME SECONDS: TERM, then KILL.
stop() {
	alive "$1" || { rm -f "$STATE/$1.pid"; return 0; }
	local pid deadline=$((SECONDS + $2))
	pid=$(cat "$STATE/$1.pid")
	kill "$pid" 2>/dev/null || true
	while kill -0 "$pid" 2>/dev/null; do
		((SECONDS > deadline)) && kill -9 "$pid" 2>/dev/null
		sleep 0.2
	done
	rm -f "$STATE/$1.pid"
}

# emulated: Kata is asked for, and this machine's processor cannot virtualise.
emulated() { [[ ${SANDBOX:-} == kata ]] && ! grep -qwE 'vmx|svm' /proc/cpuinfo; }

install() {
	[[ $(id -u) -eq 0 ]] || die "root is needed: instances are made of namespaces, cgroups and networks"
	say "Installing and building what is missing (a first run takes some minutes; the next one seconds)"
	if [[ -n $own ]]; then
		"$here/tools.sh" debian-runtime containerd cni gvisor filebeat images
	else
		"$here/tools.sh" debian-runtime containerd cni gvisor filebeat images devcluster
	fi
	if emulated; then "$here/tools.sh" debian-kata kata-shim kata; fi
	make --no-print-directory build
}

# machines starts the service that gives Kata's shim virtual machines by emulation.
machines() {
	emulated || return 0
	say "Starting virtual machines by emulation: this processor shows no vmx or svm"
	"$bin/kata-vmservice" -print-config -socket "$STATE/vm/service.sock" >"$STATE/kata.toml"
	mkdir -p "$STATE/vm"
	background vmservice "$bin/kata-vmservice" -socket "$STATE/vm/service.sock" -state "$STATE/vm/machines" -syslog "$STATE/log/kata-shims.log" \
		-kernel "$cache/kata/vmlinux" -initrd "$cache/kata/initrd.img" -qemu "$(command -v qemu-system-x86_64)"
	until_ok 30 "the VM service" test -S "$STATE/vm/service.sock"
}

configure() {
	mkdir -p "$STATE/log" "$STATE/demo"
	cat >"$config" <<-YAML
		stateDir: $STATE/cisd
		node: {name: cumulet-0, region: local, address: $NODE_ADDRESS}
		registry: {listen: "$registry"}
		control:
		  cri:
		    binDir: $bin
		    pauseImage: $cache/images/pause.tar
		    allowRuncDefault: true
		    cpu: 64        # a demo may promise more than the machine has
		    memoryGiB: 64
		$(emulated && printf '    kataConfig: %s\n    kata: {console: "%s"}' "$STATE/kata.toml" "$STATE/vm/machines/{id:16}/console.log")
		kubelet:
		  kubeconfig: $STATE/kubelet.kubeconfig
		  listen: $NODE_ADDRESS:10250
	YAML
	if [[ -z $own ]]; then
		cat >>"$config" <<-YAML
			  certFile: $STATE/cluster/kubelet.crt
			  keyFile: $STATE/cluster/kubelet.key
			  clientCAFile: $STATE/cluster/ca.crt
		YAML
	fi
}

cluster() {
	if [[ -n $own ]]; then
		say "Using the cluster of $own"
		kubectl apply -f deploy/rbac.yaml
		cp "$own" "$STATE/kubelet.kubeconfig"
		return
	fi
	say "Starting a Kubernetes control plane"
	background devcluster "$bin/devcluster" up --dir "$STATE/cluster" --port 6443 --node-name cumulet-0 --node-ip "$NODE_ADDRESS"
	until_ok 120 "the API server" test -s "$STATE/cluster/ready"
	cp "$STATE/cluster/kubelet.kubeconfig" "$STATE/kubelet.kubeconfig"
}

kubectl() { if [[ -x $bin/kubectl ]]; then "$bin/kubectl" --kubeconfig "$kubeconfig" "$@"; else command kubectl --kubeconfig "$kubeconfig" "$@"; fi; }
cis() { "$root/bin/cis" --session "$session" "$@"; }

platform() {
	say "Starting the platform"
	background cisd "$root/bin/cisd" up --config "$config"
	for url in "http://$registry" "$api" http://127.0.0.1:8441 http://127.0.0.1:8442; do
		until_ok 90 "$url/readyz" curl -fsS "$url/readyz"
	done
	until_ok 60 "the node" kubectl wait --for=condition=Ready node/cumulet-0 --timeout=1s
	"$root/bin/cisd" host check --config "$config"
}

up() {
	install
	configure
	cluster
	machines
	platform
	"$here/demo/demo.sh"
	say "It runs on. How to use it"
	cat <<-TEXT
		    export KUBECONFIG=$kubeconfig PATH=$root/bin:$bin:\$PATH CIS_CONFIG=$session
		    kubectl get pods -o wide          cis ps --all
		    kubectl logs -f deploy/web        cis run $registry/demo/hello:1 work --lines 3
		    kubectl exec -it hello -- /app env HOME    cis bill
		    registry  http://$registry   user admin, password in $STATE/cisd/credentials/admin
		    API       $api/openapi.yaml   logs http://127.0.0.1:8441/v1/openapi.yaml   billing http://127.0.0.1:8442/openapi.yaml
		    logs of the platform itself: $STATE/log        stop and remove everything: make down
	TEXT
}

down() {
	say "Stopping"
	if alive cisd && alive devcluster; then
		kubectl delete --all cronjobs,jobs,deployments,pods --wait=true --timeout=60s >/dev/null 2>&1 || true
	fi
	stop cisd 60
	[[ -e $config && -x $root/bin/cisd ]] && "$root/bin/cisd" purge --config "$config"
	stop vmservice 30
	stop devcluster 30
	rm -rf "$STATE"
	echo "    everything is gone"
}

status() {
	for p in devcluster vmservice cisd; do alive $p && echo "$p runs (pid $(cat "$STATE/$p.pid"))" || echo "$p is stopped"; done
}

export STATE registry api session kubeconfig bin root
export -f kubectl cis say die until_ok
case ${1:-} in
up) up ;;
demo) "$here/demo/demo.sh" ;;
down) down ;;
status) status ;;
*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
