// Package snapshot keeps the last good catalog on disk, with permissions,
// roots and leafs, so that a host whose registry is away can start.
//
// A file is one line that says what follows, its length and its checksum, and
// then JSON. It is replaced whole: after a crash, a power cut or a full disk it
// is the old one or the new one. What does not check out in every respect is
// set aside and never believed, in parts neither; that is not fatal, since the
// registry will say it all again. Private keys are in it only sealed
// (AES-256-GCM), under a key that is kept elsewhere, or not at all.
//
// The package does not decide when to save, what is too old to be used, or
// whether a certificate is to be believed: that is for package agent, the only
// one that imports it. It imports package mesh and the standard library, starts
// no goroutine and reads no clock but to recognise leftovers.
package snapshot
