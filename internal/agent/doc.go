// Package agent is meshd without the process around it: it builds the parts,
// runs them, and owns the picture.
//
// One goroutine compiles configuration and catalog into a picture, prepares
// listeners, publishes it and retires what it does not need any more. It is the
// only writer; everybody else loads a pointer. A change that fails to compile
// leaves the old picture in force. The rest of the package is wiring, and the
// facts that the admin socket, /ready and /metrics show.
//
// It decides nothing about a request, parses no file and speaks no protocol:
// those are the rooms below. There are no globals; several agents may run in
// one process. Only cmd meshd and tests import it.
package agent
