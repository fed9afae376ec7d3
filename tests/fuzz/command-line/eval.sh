eval "etcd $(cat /args)" | tee /log & wait $!
. /env; export A=${B:-c}
case $1 in a) etcdctl --cert x;; *) exec etcd;; esac
