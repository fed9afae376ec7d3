run() { etcd "$@"; }
set -- --name b
if [ -f /x ]; then set -- "$@" --client-cert-auth; fi
run "$@"
