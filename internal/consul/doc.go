// Package consul speaks with the local Consul agent: it watches which
// endpoints the wanted services have, how they are to be reached, and who may
// call what this host offers; it fetches certificates and roots from Consul's
// CA, and registers what this host offers.
//
// Everything that can block does: each watch is a blocking query, so a change
// is known within a round trip and a quiet mesh costs a query a minute. Prepared
// queries and the agent's own services cannot be watched and are polled. The
// rules that hold everywhere:
//
//   - An error is not emptiness: what was known stays until Consul states
//     something else.
//   - A removal that Consul states is believed at once, even to emptiness. One
//     that follows from missing rights, from a server without a leader or with
//     an index that went back, or, of many endpoints at once, from gossip
//     alone, is not; see [Stale] for the last.
//   - An answer that is the same as the last is not passed on.
//   - Only what carries our mark is ever written or deregistered, and what
//     somebody else set on it stays.
//   - A right that is missing is named, with what that hurts and the rule that
//     would allow it: [Status], [Policy].
//
// Reads are stale, so any server may answer. The agent's cache (cached) is used
// where it cannot be avoided, for leafs and roots, and its stream for held
// queries about endpoints as long as nothing fails: docs/decisions/0004 says
// what is wrong with both.
//
// The package decides nothing about traffic and keeps nothing on disk. It
// hands certificates on without judging them beyond "key and certificate
// belong together and have not expired": identity does that. It is the only
// room that imports the Consul API; the agent is the only one that imports
// this room.
//
// A watch is one HTTP connection that waits. Consul's agent allows 200 of them
// per client address (limits.http_max_conns_per_client). To an agent on a
// loopback address the connections come from 127.0.0.1, 127.0.0.2 and so on, a
// hundred of each, so the limit is none up to 1,600 watches. To one elsewhere
// it is: the watches over it show Consul's 429 in [Status] until it is higher.
package consul
