CLUSTER=
for i in 0 1 2; do CLUSTER=$CLUSTER,etcd-$i=https://etcd-$i.etcd:2380; done
exec etcd --initial-cluster "${CLUSTER#,}"
