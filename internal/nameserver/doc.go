// Package nameserver answers DNS for the names of upstreams, from the picture
// in force and nothing else.
//
// NAME.mesh.internal has an A record with the upstream's loopback address, an
// SRV record with its port and TXT records with what else is known of it. So
// has NAME.DATACENTER.mesh.internal for the datacenter of the upstream.
// _NAME._tcp.mesh.internal has the SRV record too, and the reverse name of an
// upstream's address has a PTR record. Every other name of the zone does not
// exist, everything else is refused, other reverse names included: the server
// asks nobody and forwards nothing, so there is no cache to poison. Answers
// come from a pure function over one packet and one picture; the sockets around
// it, UDP and TCP on one port, are bounded.
//
// Only loopback addresses are served. The agent may import the package. It is
// the only room that imports miekg/dns.
package nameserver
