#!/usr/bin/env bash
# demo.sh shows the whole path on a running platform; hack/quickstart.sh calls it. Every command is real, and every
# check fails the demo when the platform does.
set -euo pipefail
: "${STATE:?run it by hack/quickstart.sh demo}"
image=$registry/demo/hello:1
dir=$STATE/demo
mkdir -p "$dir"

# show COMMAND...: prints the command as a user would type it, then runs it.
show() {
	printf '\n\033[36m$ %s\033[0m\n' "$*"
	"$@"
}
skopeo() { command skopeo "$@"; }

say "An image, built here and pushed with a real client: 401, /token, hubtoken, push"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/app" ./hack/demo/app
go run ./hack/image -o "$dir/hello.tar" -tag cumulet.io/hello:1 -entrypoint /app "$dir/app:/app"
printf '\n\033[36m$ skopeo login --tls-verify=false -u admin --password-stdin %s\033[0m\n' "$registry"
skopeo login --tls-verify=false --authfile "$dir/auth.json" -u admin --password-stdin "$registry" <"$STATE/cisd/credentials/admin"
show skopeo copy --quiet --dest-tls-verify=false --authfile "$dir/auth.json" "docker-archive:$dir/hello.tar" "docker://$image"
printf '\n\033[36m$ skopeo inspect docker://%s   # without a login\033[0m\n' "$image"
if skopeo inspect --tls-verify=false --no-creds "docker://$image" >"$dir/denied" 2>&1; then die "a private image was readable by everyone"; fi
grep -o 'unauthorized.*\|denied.*' "$dir/denied" | head -n 1

say "Workloads: a Pod, a Deployment, a Job and a CronJob"
# The pull secret is what skopeo's login left: so the password is in no process list.
kubectl create secret generic demo-registry --type=kubernetes.io/dockerconfigjson \
	--from-file=.dockerconfigjson="$dir/auth.json" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
annotations=
[[ -z ${SANDBOX:-} ]] || annotations="cis.cumulet.io/sandbox: $SANDBOX"
sed "s#IMAGE#$image#; s#annotations: {}#annotations: {$annotations}#" hack/demo/manifests/demo.yaml >"$dir/demo.yaml"
show kubectl apply -f "$dir/demo.yaml"
kubectl wait --for=condition=Ready pod/hello --timeout=180s
kubectl rollout status deployment/web --timeout=180s
kubectl wait --for=condition=Complete job/count --timeout=180s
show kubectl get pods -o wide
show kubectl describe pod hello

say "Logs, exec, port-forward"
show kubectl logs hello --tail=3 --timestamps
show kubectl exec hello -- /app env GREETING POD_IP
kubectl port-forward pod/hello 18080:8080 >"$dir/forward.log" 2>&1 &
forward=$!
trap 'kill $forward 2>/dev/null || true' EXIT
until_ok 20 "the port-forward" curl -fsS http://127.0.0.1:18080/
show curl -sS http://127.0.0.1:18080/
kill $forward 2>/dev/null || true

say "The same instances by cis, and one with no Kubernetes at all"
printf '\n\033[36m$ cis login %s -u admin --org demo --password-stdin\033[0m\n' "$api"
cis login "$api" -u admin --org demo --password-stdin <"$STATE/cisd/credentials/admin"
show cis ps
show cis run "$image" work --lines 3

say "Deleting the Deployment deletes its instances; the Job's pod is deleted, its log stays"
counted=$(cis ps --all | awk '$2 ~ /^count-/ { print $1; exit }')
show kubectl delete deployment web
show kubectl delete job count
until_ok 60 "the instances' end" bash -c '! cis ps | grep -qE " (web|count)-"'
until_ok 60 "the log's shipping" bash -c "[ \"\$(cis logs $counted | wc -l)\" = 1000 ]"
printf '\n\033[36m$ cis logs %s | tail -n 2\033[0m\n' "$counted"
cis logs "$counted" | tail -n 2
diff <(cis logs "$counted") <(seq -f 'line %.0f of 1000' 1000) && echo "    1000 of 1000 lines, complete and in order"

say "The bill, made only from meter events that came through Filebeat"
until_ok 60 "the meter events" bash -c "cis bill -o json | grep -q $counted && ! cis bill | grep -E ' (web|count)-' | grep -q '~'"
show cis bill
until_ok 60 "the reconciliation" cis bill --reconcile
show cis bill --reconcile
