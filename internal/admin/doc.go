// Package admin is how people and tools talk to a running agent: HTTP with
// JSON on a Unix socket (status, reload, profiles), a client for that socket,
// and a read-only listener on TCP for /metrics, /ready and /live.
//
// The JSON types are the stable interface of meshctl and of scripts: fields
// are added, never renamed. The package knows nothing of the data path; it
// asks whatever satisfies [Agent]. It changes nothing itself but by
// Agent.Reload, and the TCP listener offers nothing that changes anything.
//
// agent and meshctl import it.
package admin
