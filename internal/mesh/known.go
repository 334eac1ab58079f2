package mesh

// Known is the index of a well-known field name; 0 is any other name. The
// numbers stand on the wire between agents (docs/wire.md): a number is never
// reused or changed, new names are added at the end.
type Known uint8

// Well-known field names.
const (
	OtherField Known = iota
	ContentLength
	ContentType
	ContentEncoding
	ContentRange
	Date
	Server
	UserAgent
	Accept
	AcceptEncoding
	AcceptLanguage
	AcceptRanges
	CacheControl
	Cookie
	SetCookie
	Authorization
	Location
	ETag
	LastModified
	IfNoneMatch
	IfModifiedSince
	Range
	Vary
	Age
	Expires
	Origin
	Referer
	Host
	Connection
	KeepAlive
	ProxyConnection
	TransferEncoding
	TE
	Trailer
	Upgrade
	Expect
	Via
	Forwarded
	XForwardedFor
	XForwardedProto
	XForwardedHost
	XForwardedClientCert
	XRequestID
	RetryAfter
	Traceparent
	Tracestate
	B3
	XB3TraceID
	XB3SpanID
	XB3ParentSpanID
	XB3Sampled
	XB3Flags
	GRPCStatus
	GRPCMessage
	GRPCTimeout
	GRPCEncoding
	GRPCAcceptEncoding
	XRequestDeadlineMs
	MeshdError
	HTTP2Settings
	ProxyAuthorization
	ProxyAuthenticate
	WWWAuthenticate
	// KnownCount is one more than the last index.
	KnownCount
)

var knownNames = [KnownCount]string{
	ContentLength: "content-length", ContentType: "content-type", ContentEncoding: "content-encoding",
	ContentRange: "content-range", Date: "date", Server: "server", UserAgent: "user-agent", Accept: "accept",
	AcceptEncoding: "accept-encoding", AcceptLanguage: "accept-language", AcceptRanges: "accept-ranges",
	CacheControl: "cache-control", Cookie: "cookie", SetCookie: "set-cookie", Authorization: "authorization",
	Location: "location", ETag: "etag", LastModified: "last-modified", IfNoneMatch: "if-none-match",
	IfModifiedSince: "if-modified-since", Range: "range", Vary: "vary", Age: "age", Expires: "expires",
	Origin: "origin", Referer: "referer", Host: "host", Connection: "connection", KeepAlive: "keep-alive",
	ProxyConnection: "proxy-connection", TransferEncoding: "transfer-encoding", TE: "te", Trailer: "trailer",
	Upgrade: "upgrade", Expect: "expect", Via: "via", Forwarded: "forwarded", XForwardedFor: "x-forwarded-for",
	XForwardedProto: "x-forwarded-proto", XForwardedHost: "x-forwarded-host",
	XForwardedClientCert: "x-forwarded-client-cert", XRequestID: "x-request-id", RetryAfter: "retry-after",
	Traceparent: "traceparent", Tracestate: "tracestate", B3: "b3", XB3TraceID: "x-b3-traceid",
	XB3SpanID: "x-b3-spanid", XB3ParentSpanID: "x-b3-parentspanid", XB3Sampled: "x-b3-sampled",
	XB3Flags: "x-b3-flags", GRPCStatus: "grpc-status", GRPCMessage: "grpc-message", GRPCTimeout: "grpc-timeout",
	GRPCEncoding: "grpc-encoding", GRPCAcceptEncoding: "grpc-accept-encoding",
	XRequestDeadlineMs: "x-request-deadline-ms", MeshdError: "meshd-error", HTTP2Settings: "http2-settings",
	ProxyAuthorization: "proxy-authorization", ProxyAuthenticate: "proxy-authenticate",
	WWWAuthenticate: "www-authenticate",
}

var knownBytes = func() (b [KnownCount][]byte) {
	for i, n := range knownNames {
		b[i] = []byte(n)
	}
	return b
}()

// String returns the lower-case name, "" for OtherField.
func (k Known) String() string {
	if k < KnownCount {
		return knownNames[k]
	}
	return ""
}

// Bytes returns the lower-case name. The caller must not write it.
func (k Known) Bytes() []byte { return knownBytes[k] }
