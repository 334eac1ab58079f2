package http1

// Error says why a message was refused. Values are predeclared and compared by
// identity, so that refusing hostile input costs no allocation.
type Error struct {
	// Status is what a server answers: 400, 414, 431, 501 or 505. For a
	// response that was refused it has no meaning; a gateway answers 502.
	Status int
	// Reason is one fixed word for logs and metrics.
	Reason string
}

// Error returns the reason after the name of the protocol.
func (e *Error) Error() string { return "http/1: " + e.Reason }

// What is wrong with the head as a whole.
var (
	ErrHeadTooLarge  = &Error{431, "head_too_large"}
	ErrTooManyFields = &Error{431, "too_many_fields"}
	ErrIncomplete    = &Error{400, "incomplete_head"} // Parse was given less than a head
	ErrExcess        = &Error{400, "data_after_head"} // Parse was given more than a head
	ErrBareLF        = &Error{400, "bare_lf"}
	ErrBareCR        = &Error{400, "bare_cr"}
	ErrControl       = &Error{400, "control_character"}
)

// What is wrong with the start line.
var (
	ErrStartLine     = &Error{400, "malformed_start_line"}
	ErrMethod        = &Error{400, "malformed_method"}
	ErrTarget        = &Error{400, "malformed_target"}
	ErrTargetTooLong = &Error{414, "target_too_long"}
	ErrVersion       = &Error{505, "unsupported_version"}
	ErrStatus        = &Error{400, "malformed_status"}
)

// What is wrong with the fields.
var (
	ErrFieldName        = &Error{400, "malformed_field_name"}
	ErrSpaceBeforeColon = &Error{400, "space_before_colon"}
	ErrFold             = &Error{400, "folded_field"}
	ErrHost             = &Error{400, "malformed_host"}
	ErrNoHost           = &Error{400, "missing_host"}
	ErrManyHosts        = &Error{400, "repeated_host"}
	ErrHostMismatch     = &Error{400, "host_not_target"}
	ErrConnection       = &Error{400, "malformed_connection"}
	ErrConnectionNames  = &Error{400, "connection_names_essential"}
	ErrUpgrade          = &Error{400, "repeated_upgrade"}
	ErrTrailerNames     = &Error{400, "trailer_names_framing"}
)

// What is wrong with the framing of the body (RFC 9112, section 6).
var (
	ErrContentLength     = &Error{400, "malformed_content_length"}
	ErrManyLengths       = &Error{400, "repeated_content_length"}
	ErrLengthAndCoding   = &Error{400, "content_length_and_transfer_encoding"}
	ErrManyCodings       = &Error{400, "repeated_transfer_encoding"}
	ErrTransferCoding    = &Error{501, "unknown_transfer_encoding"}
	ErrCodingVersion     = &Error{400, "transfer_encoding_in_http_1_0"}
	ErrBodyNotAllowed    = &Error{400, "body_where_none_is_allowed"}
	ErrChunkSize         = &Error{400, "malformed_chunk_size"}
	ErrChunkLine         = &Error{400, "chunk_line_too_long"}
	ErrChunkOverhead     = &Error{400, "too_much_chunk_extension"}
	ErrChunkEnd          = &Error{400, "malformed_chunk_end"}
	ErrTrailersTooLarge  = &Error{431, "trailers_too_large"}
	ErrTrailerNotAllowed = &Error{400, "field_not_allowed_in_trailers"}
	ErrTruncated         = &Error{400, "truncated_body"}
)
