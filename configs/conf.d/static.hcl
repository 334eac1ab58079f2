# Who exists, by hand: without Consul, or for what Consul does not know. It wins over Consul for
# the services it names. The addresses are those of the other agents' peer ports.
catalog "static" {
  service "inventory" {
    port = 7001 # the natural port: the application's own

    endpoint "inv-1" { address = "10.4.0.18:21900" }
    endpoint "inv-2" {
      address = "10.4.0.19:21900"
      weight  = 2
      meta    = { version = "2" }
    }
  }
}
