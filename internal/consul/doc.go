// Package consul speaks with the local Consul agent: it watches which
// endpoints the wanted services have, fetches certificates and roots from
// Consul's CA, and registers what this host offers.
//
// Everything that can block does: endpoints, leafs and roots are blocking
// queries, so a change is known within a round trip and a quiet mesh costs a
// query a minute. Three rules hold everywhere. An error is not emptiness: what
// was known stays until Consul states something else. An answer that is the
// same as the last is not passed on. Only what carries our mark is ever
// deregistered.
//
// The package decides nothing about traffic and keeps nothing on disk. It
// hands certificates on without judging them beyond "key and certificate
// belong together and have not expired": identity does that. It is the only
// room that imports the Consul API; the agent is the only one that imports
// this room.
//
// A watch is one HTTP connection that waits. Consul's agent allows 200 of them
// per client address (limits.http_max_conns_per_client); a host with more
// upstreams and services than that needs a higher limit there, and the watches
// over it show Consul's 429 in [Status] until it has one.
package consul
