package crilog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// cutUnit is what a file's beginning is cut by: no file system in use has larger blocks.
const cutUnit = 64 << 10

// CutFront gives back the disk space of the beginning of a log file, up to about offset and never beyond it. The rest
// stays where it is: what is known by its offset keeps it, and whoever writes or reads on is not disturbed. It tells how
// much space it gave back, 0 where the file system cannot do it.
func CutFront(path string, offset int64) (freed int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("cut log: %w", err)
	}
	defer f.Close()
	before, err := used(f)
	if err != nil {
		return 0, fmt.Errorf("cut log: %w", err)
	}
	if offset -= offset % cutUnit; offset <= 0 {
		return 0, nil
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, offset)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cut log: %w", err)
	}
	after, err := used(f)
	if err != nil {
		return 0, fmt.Errorf("cut log: %w", err)
	}
	return max(before-after, 0), nil
}

// Used tells how much disk space a log file takes, in bytes.
func Used(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("look at log: %w", err)
	}
	defer f.Close()
	return used(f)
}

func used(f *os.File) (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Blocks * 512, err
}

// front is where the first record begins that is whole: 0 in a file that was not cut.
func front(f *os.File) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil // an empty file, or one that cannot have been cut
	}
	if err != nil || at == 0 {
		return 0, err
	}
	// What is left of the record that was cut is passed over. It may be all there is.
	r := bufio.NewReader(io.NewSectionReader(f, at, 1<<62-at))
	for {
		part, err := r.ReadSlice('\n')
		at += int64(len(part))
		if err == nil || errors.Is(err, io.EOF) {
			return at, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return 0, err
		}
	}
}
