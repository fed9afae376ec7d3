exec env -ܻ etcd "$@"
