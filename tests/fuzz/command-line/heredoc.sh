cat <<EOF > /tmp/c
name: a
EOF
exec env -u X ETCD_NAME=a etcd --config-file /tmp/c
