exec etcd --name=$NAME --listen-client-urls https://0.0.0.0:2379
