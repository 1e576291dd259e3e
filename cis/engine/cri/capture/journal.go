package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// journal is how far the log is. It is written, in one piece, before each batch of records goes to the log: From, To and
// the log's size then tell whether the batch is there, and what is missing of it.
type journal struct {
	// Done counts the bytes of each stream whose records are in the log, without the batch.
	Done [2]int64
	// The batch: N bytes of stream Stream, as records with the time At (ns since 1970).
	Stream, N, At int64
	// From and To are the log's size before and after the batch.
	From, To int64
}

var errJournal = errors.New("not a journal")

var journalMagic = [8]byte{'c', 'u', 'm', 'j', 'r', 'n', 'l', '1'}

const journalSize = len(journalMagic) + 7*8 + 4

func (j *journal) fields() [7]*int64 {
	return [7]*int64{&j.Done[0], &j.Done[1], &j.Stream, &j.N, &j.At, &j.From, &j.To}
}

func (j *journal) encode() []byte {
	b := bytes.Clone(journalMagic[:])
	for _, f := range j.fields() {
		b = binary.LittleEndian.AppendUint64(b, uint64(*f))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func decodeJournal(b []byte) (*journal, error) {
	if len(b) != journalSize || !bytes.Equal(b[:len(journalMagic)], journalMagic[:]) {
		return nil, errJournal
	}
	end := len(b) - 4
	if binary.LittleEndian.Uint32(b[end:]) != crc32.ChecksumIEEE(b[:end]) {
		return nil, errJournal
	}
	j := &journal{}
	for i, f := range j.fields() {
		*f = int64(binary.LittleEndian.Uint64(b[len(journalMagic)+8*i:]))
	}
	if j.Done[0] < 0 || j.Done[1] < 0 || j.Stream < 0 || j.Stream > 1 || j.N < 0 || j.N > maxBatch || j.From < 0 || j.To < j.From {
		return nil, errJournal
	}
	return j, nil
}
