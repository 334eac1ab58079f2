# /etc/meshd/conf.d/payments.hcl - one file per application.

# What this host offers to the mesh.
service "payments" {
  port     = 8080   # the application's own port
  protocol = "http" # tcp, http; default tcp
  tags     = ["v2"]
  meta     = { version = "2.3.1" }

  # id      = "payments-1" # only needed when a host has several instances
  # address = "127.0.0.1"  # where the application listens

  # token_file = "/etc/meshd/payments.token" # registers it; default: that of the block consul

  # Made by Consul, on the application itself. Instead of http: tcp = true, or grpc = "SERVICE".
  check {
    http     = "/healthz"
    interval = "10s"
    timeout  = "2s"
  }

  connect_timeout = "1s"
  idle_timeout    = "5m"

  # Who may call. Consul's intentions must allow it too; without any block they decide alone.
  allow "web" {}
  allow "orders" {}

  limits {
    max_connections         = 1024
    max_concurrent_requests = 256
  }
}

# What the applications of this host call.
upstream "inventory" {
  protocol        = "http"
  request_timeout = "2s"

  circuit_breaker {
    consecutive_failures = 3
  }
}

upstream "ledger" {
  destination_name = "postgres" # its name in the catalog, where that differs
  # datacenter     = "dc2"
  from               = "payments"  # on whose behalf; not needed with one service
  local_bind_port    = 5432        # also 127.0.0.1:5432, and the port of ledger.mesh.internal
  local_bind_address = "127.0.0.1" # the default
  idle_timeout       = "off"

  # And on a Unix socket, for whoever may write to it:
  # local_bind_socket_path = "/run/meshd/ledger.sock"
  # local_bind_socket_mode = "0660"
}

# What a prepared query of Consul returns:
# upstream "stock" {
#   destination_type = "prepared_query"
#   destination_name = "nearest-stock"
#   protocol         = "http"
# }
