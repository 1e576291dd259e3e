package cis

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	kjson "sigs.k8s.io/json"

	"cumulet.io/internal/problem"
)

// MaxCreateBytes bounds the body of a create: several volumes of MaxFilesBytes in base64 and the rest of a spec.
const MaxCreateBytes = 8 << 20

// MaxUpdateBytes bounds the body of a volume update: MaxFilesBytes in base64 and the names.
const MaxUpdateBytes = 6 << 20

// DecodeCreate reads one JSON document, at most MaxCreateBytes, and nothing behind it. Names are case-sensitive;
// unknown and repeated ones are errors. Errors are problems of class ErrInvalid that name the field, or ErrTooLarge.
// The request is not validated.
func DecodeCreate(r io.Reader) (*CreateRequest, error) {
	req := new(CreateRequest)
	if err := decodeStrict(r, MaxCreateBytes, req); err != nil {
		return nil, err
	}
	return req, nil
}

// DecodeFiles reads a FilesVolume as DecodeCreate reads a request, at most MaxUpdateBytes.
func DecodeFiles(r io.Reader) (*FilesVolume, error) {
	v := new(FilesVolume)
	if err := decodeStrict(r, MaxUpdateBytes, v); err != nil {
		return nil, err
	}
	return v, nil
}

func decodeStrict(r io.Reader, limit int64, into any) error {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if int64(len(body)) > limit {
		return problem.New(problem.ErrTooLarge, "the body is larger than %d bytes", limit)
	}
	if hugeExponent(body) {
		if err := refuseBad(body); err != nil {
			return err
		}
	}
	strict, err := kjson.UnmarshalStrict(body, into)
	if err != nil {
		return decodeError(body, err)
	}
	if len(strict) > 0 {
		var f kjson.FieldError
		if errors.As(strict[0], &f) {
			return problem.InvalidSecret(f.FieldPath(), "must be a field of the documented form, and there once: "+strictRule(strict[0].Error()))
		}
		return problem.New(problem.ErrInvalid, "the body has a field that is unknown or there twice")
	}
	if len(body) == 0 || slices.Equal(body, []byte("null")) {
		return problem.New(problem.ErrInvalid, "the body must be a JSON object")
	}
	return nil
}

// strictRule is the kind of a strict error: "unknown field" or "duplicate field".
func strictRule(text string) string {
	kind, _, _ := strings.Cut(text, ` "`)
	return kind
}

// decodeError names the field of an error of the JSON decoder. Values are not repeated: they may be secret.
func decodeError(body []byte, err error) error {
	if ok, offset := kjson.SyntaxErrorOffset(err); ok {
		return problem.New(problem.ErrInvalid, "the body is not JSON: error at byte %d", offset)
	}
	// First what has a decoder of its own: its errors know nothing of the place.
	if err := refuseBad(body); err != nil {
		return err
	}
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) && typeErr.Field != "" {
		field := pathAt(body, typeErr.Offset)
		if field == "" {
			field = typeErr.Field
		}
		return problem.InvalidSecret(field, "must be "+jsonKind(typeErr.Type.String())+", not "+typeErr.Value)
	}
	return problem.New(problem.ErrInvalid, "the body must be a JSON object of the documented form")
}

// hugeExponent finds what may be a quantity such as "123456789e999999999", escaped or not: parsing it would take the
// quantity package hours, so such a body is looked through first.
func hugeExponent[T string | []byte](text T) bool {
	for i := range len(text) {
		switch text[i] {
		case '\\':
			if i+1 < len(text) && text[i+1] == 'u' {
				return true
			}
		case 'e', 'E':
			j := i + 1
			if j < len(text) && (text[j] == '+' || text[j] == '-') {
				j++
			}
			if j+3 <= len(text) && isDigit(text[j]) && isDigit(text[j+1]) && isDigit(text[j+2]) {
				return true
			}
		}
	}
	return false
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// refuseBad names the first value that a type with its own decoder refuses: a quantity, a port, a file's data. It is
// nil when there is none, or the body is not JSON: then the strict decoder says what is wrong.
func refuseBad(body []byte) error {
	var found error
	walkJSON(body, func(p jsonPath, _ int64, token json.Token) bool {
		if rule := badValue(p, token); rule != "" {
			found = problem.InvalidSecret(p.String(), rule)
		}
		return found == nil
	})
	return found
}

func badValue(p jsonPath, token json.Token) string {
	text, isString := token.(string)
	number, isNumber := token.(json.Number)
	switch {
	case p.at(3) == "resources" && (p.at(2) == "limits" || p.at(2) == "requests"):
		if isNumber {
			text = number.String()
		}
		if token != nil && (!isString && !isNumber || !isQuantity(text)) {
			return `must be a quantity, as "500m", "2" or "1Gi"`
		}
	case p.at(1) == "port" && (p.at(2) == "httpGet" || p.at(2) == "tcpSocket"):
		_, err := strconv.ParseInt(number.String(), 10, 32)
		if token != nil && !isString && (!isNumber || err != nil) {
			return "must be a port number or a name"
		}
	case p.at(1) == "data" && p.at(3) == "files" && isString:
		if _, err := base64.StdEncoding.DecodeString(text); err != nil {
			return "must be base64 text"
		}
	}
	return ""
}

// isQuantity keeps away from the quantity package what it cannot parse in bounded time.
func isQuantity(text string) bool {
	if len(text) > 64 || hugeExponent(text) {
		return false
	}
	_, err := resource.ParseQuantity(strings.TrimSpace(text))
	return err == nil
}

func jsonKind(goType string) string {
	switch {
	case strings.HasSuffix(goType, "[]uint8"):
		return "base64 text"
	case strings.Contains(goType, "[]"):
		return "an array"
	case strings.Contains(goType, "int"):
		return "a whole number in range"
	case strings.HasSuffix(goType, "bool"):
		return "true or false"
	case strings.HasPrefix(goType, "map["), strings.HasPrefix(goType, "cis."), strings.HasPrefix(goType, "v1.") && !strings.HasSuffix(goType, "Policy") &&
		!strings.HasSuffix(goType, "Protocol") && !strings.HasSuffix(goType, "Scheme"):
		return "an object"
	default:
		return "a string"
	}
}

// pathAt is the JSON path of the value that lies at or ends at offset; "" when there is none.
func pathAt(body []byte, offset int64) string {
	at := ""
	walkJSON(body, func(p jsonPath, end int64, _ json.Token) bool {
		if end < offset {
			return true
		}
		at = p.String()
		return false
	})
	return at
}

// jsonPath is where a value is: keys of objects and indexes of arrays, outermost first.
type jsonPath []jsonLevel

type jsonLevel struct {
	array, wantKey bool
	index          int
	key            string
}

// at is the n-th last key or "" for an array's index; the last is 1.
func (p jsonPath) at(n int) string {
	if n > len(p) || p[len(p)-n].array {
		return ""
	}
	return p[len(p)-n].key
}

func (p jsonPath) String() string {
	var b strings.Builder
	for _, l := range p {
		if l.array {
			b.WriteString("[" + strconv.Itoa(l.index) + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(l.key)
	}
	return b.String()
}

// walkJSON visits every value of a document in order, repeated keys too, until visit answers false or the document
// is not JSON any more. A value is a scalar or the json.Delim that opens it; end is where its token ends.
func walkJSON(body []byte, visit func(p jsonPath, end int64, token json.Token) bool) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var p jsonPath
	for {
		token, err := dec.Token()
		if err != nil {
			return
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			p = p[:len(p)-1]
			continue
		}
		if len(p) > 0 {
			top := &p[len(p)-1]
			switch {
			case top.array:
				top.index++
			case top.wantKey:
				top.key, _ = token.(string)
				top.wantKey = false
				continue
			default:
				top.wantKey = true
			}
		}
		if !visit(p, dec.InputOffset(), token) {
			return
		}
		if token == json.Delim('{') || token == json.Delim('[') {
			p = append(p, jsonLevel{array: token == json.Delim('['), index: -1, wantKey: true})
		}
	}
}
