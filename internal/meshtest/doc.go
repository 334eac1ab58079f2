// Package meshtest is the test kit: a real Consul, a Consul that can be broken
// on purpose, small applications to call, free ports, and a check that a test
// left nothing behind.
//
// It is imported by tests only and may itself import anything. It holds no
// logic of the mesh: what two tests need from a room belongs into that room.
package meshtest
