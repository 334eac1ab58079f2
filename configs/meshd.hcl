# /etc/meshd/meshd.hcl - settings of the host. Read first; then conf.d/*.hcl in the order of their names.
# Check with `meshctl validate`, apply with `systemctl reload meshd` (or `meshctl reload`).
#
# Everything here is optional. The values are the defaults unless a comment says otherwise, so a
# host with a Consul agent needs no more than the service and upstream blocks in conf.d.

agent {
  data_dir      = "/var/lib/meshd" # addresses given to upstreams, and what else must outlive a restart
  log_level     = "info"           # trace, debug, info, warn, error
  drain_timeout = "30s"            # at shutdown; then what still runs is cut
  access_log    = false            # one line per request or connection

  # node_name  = "web-03" # default: the host name
  # log_format = "json"   # json, text; default: text on a terminal, else json
  # loops      = 2        # event loops at most; default: number of cores, at most 4

  # Keys of certificates are kept in data_dir too, sealed, so that a start without Consul can serve.
  # persist_keys = false                  # keep none
  # key_file     = "/etc/meshd/seal.key" # what seals them; default: snapshot.key in data_dir
}

admin {
  socket = "/run/meshd/meshd.sock" # meshctl talks to this
  http   = "127.0.0.1:9900"        # /metrics and /ready, read-only; "" turns it off

  # group = "meshd" # its members may use the socket: read and reload
}

consul {
  address = "127.0.0.1:8500"
  # datacenter = "dc1"                     # default: that of the agent
  # token_file = "/etc/meshd/consul.token" # read again when it changes

  # With the block, HTTPS; an empty one is enough where the system trusts Consul's CA.
  # tls {
  #   ca_file     = "/etc/meshd/consul-ca.pem"
  #   cert_file   = "/etc/meshd/consul.pem" # only where the agent asks for one
  #   key_file    = "/etc/meshd/consul.key"
  #   server_name = "server.dc1.consul" # default: the host of address
  # }

  # How long to believe what Consul said last, while it does not answer.
  stale {
    warn_after   = "5m"
    drop_after   = "24h"
    shrink_after = "5m" # when the nodes of most endpoints vanish at once
  }
}

identity {
  provider = "consul" # certificates from Consul's CA
  # service = "web"   # who calls, where an upstream has no "from"; default: the only service

  # For trying out, a throwaway CA; agents that share the folder trust each other:
  # provider = "dev"
  # dev { dir = "/var/lib/meshd/dev-ca" }
}

dns {
  domain  = "mesh.internal" # upstream "inventory" is inventory.mesh.internal
  address = "127.0.0.1:8653"
  ttl     = "5s"
}

loopback {
  cidr = "127.77.0.0/16" # one address per upstream, kept across restarts
}

peer {
  bind = "[::]:21900" # the mTLS port that other agents connect to; IPv4 too
  # advertise = "10.4.0.17" # default: the node's address in Consul
}

# What every upstream starts from; an upstream's own value wins, attribute by attribute.
defaults {
  connect_timeout = "1s"
  request_timeout = "15s" # http only
  # idle_timeout  = "5m"  # default: 5m for http, 1h for tcp

  circuit_breaker {
    consecutive_failures = 5
    open_for             = "30s"
  }

  load_balancer {
    policy = "least_request"

    least_request {
      choice_count = 2
    }
  }

  limits {
    max_connections         = 1024
    max_pending_requests    = 1024
    max_concurrent_requests = 1024
  }
}
