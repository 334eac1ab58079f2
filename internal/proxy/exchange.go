package proxy

import (
	"time"

	"meshd/internal/breaker"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// side is one end of an exchange: an application's connection or a stream of a
// link. Calls go from the exchange to the side; what the side reads it tells
// the exchange by the methods below (fromDown…, fromUp…). A side never calls
// the exchange from within a call of these, except for reset.
type side interface {
	// sendHead passes the head on: the response towards the caller. end tells
	// that nothing follows.
	sendHead(h *mesh.Head, end bool)
	sendInterim(h *mesh.Head)
	sendData(p []byte, end bool)
	// sendTrailers ends the direction; an empty list is an end without trailers.
	sendTrailers(t []mesh.Field)
	// room is how many bytes sendData takes now. At 0 the other side has to
	// stop reading until resume.
	room() int
	// delivered tells that n bytes this side had read have left the other one.
	delivered(n int)
	// resume tells that the other side has room again.
	resume()
	// done tells the side that the exchange ended well.
	done()
	// fail ends the side because the exchange ended with o.
	fail(o Outcome)
}

// exchange is one request, or one TCP connection, on its way: it joins the
// side that asks (down) and the side that answers (up). It is embedded in the
// down side, since every exchange begins there.
type exchange struct {
	w     *worker
	down  side
	up    side // nil until an attempt has one
	shard *telemetry.Shard
	use   *usage

	plan    *outPlan // at the calling host
	inbound *inPlan  // at the called host
	ep      *epPlan
	local   *epLocal
	permit  breaker.Permit
	tried   [maxAttempts]*endpointState
	tries   int
	last    Outcome // of the attempt before

	tcp      bool
	running  bool // between begin and finish
	waiting  *linkSet
	saved    []byte // the open frame, as long as it may have to be sent again
	savedEnd bool
	touched  bool // something of it was given to the application here

	reqEnd, respHead, respEnd bool
	status                    int
	start, activity           int64 // loop time
	deadline                  int64 // 0 is none
	received, sent            int64 // body bytes from and to the down side

	method, path, caller string // for the access log only
}

// begin starts the exchange if the limits allow it.
func (x *exchange) begin(w *worker, down side, tcp bool) {
	*x = exchange{w: w, down: down, tcp: tcp, running: true, start: w.loop.Now()}
	x.activity = x.start
	w.active++
}

// beginOutbound is begin at the calling host.
func (x *exchange) beginOutbound(w *worker, down side, plan *outPlan, tcp bool) bool {
	x.begin(w, down, tcp)
	x.plan, x.shard = plan, plan.st.shards[w.loop.Index()]
	if !tcp && plan.RequestTimeout > 0 {
		x.deadline = x.start + int64(plan.RequestTimeout)
	}
	x.use = &plan.st.usage
	if !take(&x.use.requests, plan.Limits.MaxConcurrentRequests) {
		x.use = nil
		return false
	}
	return true
}

// beginInbound is begin at the called host.
func (x *exchange) beginInbound(w *worker, down side, in *inPlan, tcp bool, remaining time.Duration) bool {
	x.begin(w, down, tcp)
	x.inbound, x.shard = in, in.st.shards[w.loop.Index()]
	if !tcp {
		limit := in.RequestTimeout
		if remaining > 0 && (limit == 0 || remaining < limit) {
			limit = remaining
		}
		if limit > 0 {
			x.deadline = x.start + int64(limit)
		}
	}
	x.use = &in.st.usage
	if !take(&x.use.requests, in.Limits.MaxConcurrentRequests) {
		x.use = nil
		return false
	}
	return true
}

// remaining is the time left for the exchange, 0 when it has no deadline.
func (x *exchange) remaining() time.Duration {
	if x.deadline == 0 {
		return 0
	}
	return max(time.Duration(x.deadline-x.w.loop.Now()), time.Millisecond)
}

// What the down side read.

func (x *exchange) fromDownData(p []byte, end bool) {
	x.activity = x.w.loop.Now()
	x.received += int64(len(p))
	x.reqEnd = x.reqEnd || end
	if x.saved != nil && (len(p) > 0 || end) {
		x.dropSaved() // cannot be repeated any more
	}
	if x.up != nil {
		x.up.sendData(p, end)
		x.settle()
	}
}

func (x *exchange) fromDownTrailers(t []mesh.Field) {
	x.activity = x.w.loop.Now()
	x.reqEnd = true
	x.dropSaved()
	if x.up != nil {
		x.up.sendTrailers(t)
		x.settle()
	}
}

// What the up side read.

func (x *exchange) fromUpInterim(h *mesh.Head) {
	x.activity = x.w.loop.Now()
	// An interim answer is not waited for by credit, so whoever does not read
	// gets none: an application could send them without end.
	if !x.respHead && x.down.room() > 0 {
		x.down.sendInterim(h)
	}
}

func (x *exchange) fromUpHead(h *mesh.Head, end bool) {
	x.activity = x.w.loop.Now()
	x.respHead, x.status = true, h.Status
	if h.Status < 500 {
		x.proved()
	}
	x.dropSaved()
	x.respEnd = end
	x.down.sendHead(h, end)
	x.settle()
}

func (x *exchange) fromUpData(p []byte, end bool) {
	x.activity = x.w.loop.Now()
	x.sent += int64(len(p))
	if x.tcp {
		x.proved()
	}
	if x.saved != nil {
		x.dropSaved()
	}
	x.respEnd = x.respEnd || end
	x.down.sendData(p, end)
	x.settle()
}

func (x *exchange) fromUpTrailers(t []mesh.Field) {
	x.activity = x.w.loop.Now()
	x.respEnd = true
	x.down.sendTrailers(t)
	x.settle()
}

// settle ends the exchange when both directions have: for HTTP the response
// decides, for TCP both directions count.
func (x *exchange) settle() {
	if !x.running || !x.respEnd {
		return
	}
	if x.tcp && !x.reqEnd {
		return
	}
	up := x.up
	unfinished := !x.reqEnd
	x.up = nil
	x.record(OK)
	switch {
	case up == nil:
	case unfinished:
		// The answer came before the whole request: nobody wants the rest.
		up.fail(OK)
	default:
		up.done()
	}
	x.down.done()
}

// fromUpReset ends the attempt with o. delivered tells that the application
// may have seen something of it; otherwise, and only then, another endpoint is
// asked as long as the request can be repeated from what was saved.
func (x *exchange) fromUpReset(o Outcome, delivered bool) {
	if !x.running {
		return
	}
	x.up = nil
	if !delivered && !x.respHead && x.saved != nil && x.received == 0 && o != Denied {
		x.giveBack(o)
		x.attempt()
		return
	}
	x.finish(o)
}

// fromDownGone ends the exchange because the asking side went away or broke
// the rules.
func (x *exchange) fromDownGone(o Outcome) {
	if !x.running {
		return
	}
	up := x.up
	x.up = nil
	x.record(o)
	if up != nil {
		up.fail(o)
	}
}

// finish ends the exchange with an error: both sides are told.
func (x *exchange) finish(o Outcome) {
	if !x.running {
		return
	}
	up := x.up
	x.up = nil
	if x.status == 0 && !x.tcp {
		x.status = outcomes[o].status
	}
	x.record(o)
	if up != nil {
		up.fail(o)
	}
	x.down.fail(o)
}

// expire is called when the down side's timer finds a deadline passed.
func (x *exchange) expire(o Outcome) { x.finish(o) }

// dueAt returns when the exchange must be looked at again: the deadline or the
// idle timeout, whichever is first; 0 when neither is set.
func (x *exchange) dueAt() (at int64, o Outcome) {
	idle := time.Duration(0)
	switch {
	case x.plan != nil:
		idle = x.plan.IdleTimeout
	case x.inbound != nil:
		idle = x.inbound.IdleTimeout
	}
	if idle > 0 {
		at, o = x.activity+int64(idle), IdleTimeout
	}
	if x.deadline != 0 && (at == 0 || x.deadline < at) {
		at, o = x.deadline, RequestTimeout
	}
	return at, o
}

// giveBack returns what the attempt holds and tells the breaker how it went.
func (x *exchange) giveBack(o Outcome) {
	x.last = o
	if x.waiting != nil {
		x.waiting.leave(x)
	}
	if x.local != nil {
		x.local.inFlight--
		x.local = nil
	}
	if x.ep == nil {
		return
	}
	b := &x.ep.st.breaker
	switch {
	case o == OK && x.status < 500:
		b.Success(x.permit)
	case o == OK, o.failure():
		if b.Failure(x.plan.breaker, x.permit, x.w.loop.Now()) {
			x.ep.st.opened(o, x.status)
			x.w.log.Warn("circuit breaker opened", "upstream", x.plan.Name, "endpoint", x.ep.ID,
				"address", x.ep.Address.String(), "why", *x.ep.st.openedBy.Load())
		}
	default:
		b.Cancel(x.permit)
	}
	x.ep = nil
}

// proved reports a probe as a success as soon as the endpoint has shown that it
// works: a stream or a TCP connection may live for hours, and until its probe
// is handed back nobody else may try the endpoint.
func (x *exchange) proved() {
	if x.permit == breaker.Probe && x.ep != nil {
		x.ep.st.breaker.Success(x.permit)
		x.permit = breaker.Granted
	}
}

func (x *exchange) dropSaved() {
	if x.saved != nil {
		x.w.loop.Put(x.saved)
		x.saved = nil
	}
}

// record is the one exit of every exchange: breaker, limits, metrics, log.
func (x *exchange) record(o Outcome) {
	if !x.running {
		return
	}
	x.running = false
	x.w.active--
	endpoint := ""
	if x.ep != nil {
		endpoint = x.ep.ID
	}
	x.giveBack(o)
	x.dropSaved()
	if x.use != nil {
		x.use.requests.Add(-1)
		x.use = nil
	}
	class := uint8(0)
	if x.status >= 100 && x.status < 600 {
		class = uint8(x.status / 100)
	}
	now := x.w.loop.Now()
	x.shard.Exchange(uint8(o), class, now-x.start)
	x.shard.Bytes(x.received, x.sent)
	x.shard.Attempts(x.tries)
	if x.w.access != nil {
		x.logAccess(o, endpoint, now)
	}
}

func (x *exchange) logAccess(o Outcome, endpoint string, now int64) {
	a := telemetry.Access{
		Method: x.method, Path: x.path, Peer: x.caller, Status: x.status, Outcome: o.String(), Tries: x.tries,
		Duration: time.Duration(now - x.start), BytesIn: x.received, BytesOut: x.sent, Endpoint: endpoint,
	}
	if x.plan != nil {
		a.Direction, a.Name = telemetry.Outbound, x.plan.Name
	} else if x.inbound != nil {
		a.Direction, a.Name = telemetry.Inbound, x.inbound.Name
	}
	telemetry.AccessLine(x.w.access, a)
}

// note keeps what only the access log needs.
func (x *exchange) note(h *mesh.Head) {
	if x.w.access != nil {
		x.method, x.path = string(h.Method), string(h.Path)
	}
}

// open sends the request out: on an open link at once, else as soon as there is
// one. It is saved as long as it can be sent again.
func (x *exchange) open(o *wire.Open, end bool) {
	x.reqEnd = end
	x.savedEnd = end
	ep := x.choose()
	if ep == nil {
		return
	}
	if l := x.w.linkSet(ep.target).best(); l != nil {
		o.Endpoint, o.Remaining, o.Attempt = ep.id, x.remaining(), uint8(x.tries-1)
		at := len(l.out)
		if !l.start(x, o, end) {
			x.finish(BadRequest)
			return
		}
		// The peer may have dropped the service a moment ago, before we could
		// hear of it; then another one is asked. A body cannot be sent twice.
		if end || x.tcp {
			x.saved = append(x.w.loop.Get(len(l.out)-at), l.out[at:]...)
		}
		return
	}
	// They are filled in when it is sent. What is left in o is another request's.
	o.Endpoint, o.Remaining, o.Attempt = nil, 0, 0
	frame, ok := wire.AppendOpen(x.w.loop.Get(4<<10), 0, o, end)
	if !ok {
		x.w.loop.Put(frame)
		x.finish(BadRequest)
		return
	}
	x.saved = frame
	x.wait(ep)
}

// attempt tries another endpoint with the saved request.
func (x *exchange) attempt() {
	ep := x.choose()
	if ep == nil {
		return
	}
	if l := x.w.linkSet(ep.target).best(); l != nil {
		x.send(l)
		return
	}
	x.wait(ep)
}

// send opens the stream on l from the saved request.
func (x *exchange) send(l *link) {
	o := &x.w.open
	if err := wire.ParseOpen(x.saved[wire.HeaderLen:], o); err != nil {
		x.finish(ProtocolError)
		return
	}
	o.Endpoint, o.Remaining, o.Attempt = x.ep.id, x.remaining(), uint8(x.tries-1)
	if !l.start(x, o, x.savedEnd) {
		x.finish(BadRequest)
		return
	}
	x.down.resume()
}

// wait queues the exchange for a link to ep, opening one if none is on its way.
func (x *exchange) wait(ep *epPlan) {
	set := x.w.linkSet(ep.target)
	if set.full() || !take(&x.use.pending, x.plan.Limits.MaxPendingRequests) {
		x.finish(Overflow)
		return
	}
	set.join(x)
}

// linkFailed is called by a link set whose dial failed.
func (x *exchange) linkFailed(o Outcome) {
	x.giveBack(o)
	x.attempt()
}

// choose picks an endpoint for the next attempt. On nil the exchange has ended.
func (x *exchange) choose() *epPlan {
	if x.tries == maxAttempts {
		x.finish(x.last)
		return nil
	}
	v := &x.w.view
	*v = pickView{w: x.w, x: x, now: x.w.loop.Now()}
	for {
		i := v.pick()
		if i < 0 {
			x.finish(v.none())
			return nil
		}
		ep := &x.plan.eps[i]
		x.tried[x.tries] = ep.st
		// Another loop may have taken the one probe since we looked.
		permit := ep.st.breaker.Allow(x.plan.breaker, v.now)
		if permit == breaker.Refused {
			v.skip = ep.st
			continue
		}
		x.tries++
		x.ep, x.permit = ep, permit
		x.local = x.w.endpoint(ep.st)
		x.local.inFlight++
		return ep
	}
}

// refuse ends an exchange of the called host before anything was delivered.
func (x *exchange) refuse(o Outcome) {
	if x.tcp {
		x.finish(o)
		return
	}
	x.status = outcomes[o].status
	x.finish(o)
}
