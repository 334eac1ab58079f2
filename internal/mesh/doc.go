// Package mesh holds the nouns of the service mesh and the picture that is
// compiled from them.
//
// A [Spec] is what this host wants: the services it offers and the upstreams
// its applications call. A [Catalog] is what exists: endpoints with their
// health, as a registry or a file states them. [Compile] turns both into a
// [Snapshot], the immutable picture that the data path, the name server and
// the control API read. Nobody writes a Snapshot after Compile returned it.
//
// What changes with every connection (breakers, links, live streams) is not a
// fact and therefore not here: its owners keep it under the stable keys that
// the picture carries ([Endpoint.Key], [Outbound.Name]).
//
// The package imports the standard library only, opens no socket, starts no
// goroutine and reads no clock. Every other room may import it.
package mesh
