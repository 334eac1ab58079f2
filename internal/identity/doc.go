// Package identity holds the certificates that this host presents, the roots
// it believes, and the one place where a peer is believed or refused.
//
// A [Store] keeps a leaf per local service and the roots of the own trust
// domain. [Store.ClientConfig] and [Store.ServerConfig] make the TLS
// configurations of links from it; both read the store at the moment of a
// handshake, so a rotated leaf or root is in force for the next one. All
// checking sits in VerifyConnection, which crypto/tls calls for every
// handshake, a resumed one included; there are no session tickets either, so a
// peer that was believed once is asked again each time. Refusals are typed:
// [VerifyError] carries a [Reason] from a closed list. No roots, no leaf or an
// unknown name means refusal; nothing is allowed because something is missing.
//
// Where leafs and roots come from is not known here: the consul room hands
// them in through functions, and [Dev] is a throwaway authority in a folder
// for a laptop. The package decides who a peer is, never what it may do (see
// package policy), and it does not open connections. The agent and the proxy
// may import it. It is the only room that imports go-spiffe.
package identity
