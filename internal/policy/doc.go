// Package policy decides who may talk: whether a caller, known by the name
// that its verified certificate states, may reach a service of this host.
//
// [Compile] turns the allow blocks and the registry's intentions of one service
// into [Rules]; [Rules.Decide] answers for one caller. Where both are, both must
// allow; what is not known denies, and a caller without a name is nobody. The
// datacenter of a caller is not compared, as in Consul. Who the caller is was
// settled before (see package identity).
//
// The package is pure: no clock, no I/O, no lock. The proxy and the agent may
// import it.
package policy
