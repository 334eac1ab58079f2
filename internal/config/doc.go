// Package config turns HCL files into a [mesh.Spec] and the settings of the
// agent, or into diagnostics that say where, what was found and what is
// allowed.
//
// [Load] reads meshd.hcl and the files of conf.d beside it, in either syntax of
// HCL, checks everything it can without touching the machine, and reports all
// errors at once. A token, key or certificate it only names: whoever needs one
// reads it, and notices that it was replaced. One
// table (the blocks in schema_*.go) says what may be written: the decoder walks
// it, defaults are taken from it, [Reference] prints it, and docs/configuration.md
// is compared with it, so they cannot disagree.
//
// The package binds no port, resolves no name, asks no registry, keeps nothing
// and starts no goroutine. Whether a port is really free, or Consul really
// there, is for the agent to find out while running.
//
// It is the only room that imports HCL. The agent and the doors import it.
package config
