// Package docscheck checks the project's own pages: that what they link to is there.
//
// It looks at links between files of the tree and at headings, and at nothing outside: the network is not asked. It is
// for the test beside it and no part of the product.
package docscheck

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var (
	link    = regexp.MustCompile(`!?\[[^\]]*\]\(([^()\s]+)(?:\s+"[^"]*")?\)`)
	heading = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
	inline  = regexp.MustCompile("`[^`]*`")
)

// Links checks every relative link of the Markdown files below root and gives a sentence for each that leads nowhere,
// as "docs/cis.md:12: no such file: docs/logz.md", in the files' order.
func Links(root string) ([]string, error) {
	pages, err := find(root)
	if err != nil {
		return nil, err
	}
	var bad []string
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			return nil, fmt.Errorf("check links: %w", err)
		}
		for n, line := range prose(string(text)) {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if why := check(root, page, m[1]); why != "" {
					bad = append(bad, fmt.Sprintf("%s:%d: %s", page, n+1, why))
				}
			}
		}
	}
	return bad, nil
}

// find lists the Markdown files of the tree, as paths below root with slashes.
func find(root string) ([]string, error) {
	var pages []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "vendor", "bin"}, d.Name())):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".md"):
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			pages = append(pages, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find pages: %w", err)
	}
	return pages, nil
}

// prose gives the lines of a page, those of code blocks empty and code spans removed.
func prose(text string) []string {
	lines := strings.Split(text, "\n")
	fence := ""
	for i, line := range lines {
		t := strings.TrimSpace(line)
		switch {
		case fence != "":
			if t == fence {
				fence = ""
			}
			lines[i] = ""
		case strings.HasPrefix(t, "```"):
			fence = "```"
			lines[i] = ""
		}
	}
	for i := range lines {
		if !heading.MatchString(lines[i]) {
			lines[i] = unspan(lines[i])
		}
	}
	return lines
}

// unspan removes code spans that do not stand in a link's text.
func unspan(line string) string {
	return inline.ReplaceAllStringFunc(line, func(s string) string {
		if strings.Contains(s, "](") {
			return ""
		}
		return "x"
	})
}

func check(root, page, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	file, anchor, _ := strings.Cut(target, "#")
	path := page
	if file != "" {
		path = filepath.ToSlash(filepath.Join(filepath.Dir(page), file))
	}
	st, err := os.Stat(filepath.Join(root, path))
	switch {
	case err != nil:
		return "no such file: " + path
	case anchor == "" || st.IsDir() || !strings.HasSuffix(path, ".md"):
		return ""
	}
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return err.Error()
	}
	if !slices.Contains(anchors(string(text)), anchor) {
		return "no such heading: " + path + "#" + anchor
	}
	return ""
}

// anchors are the headings of a page as GitHub names them: lower case, letters, digits, '-' and '_', blanks as '-'.
func anchors(text string) []string {
	var all []string
	for _, line := range prose(text) {
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		var b strings.Builder
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				b.WriteRune(r)
			}
		}
		all = append(all, b.String())
	}
	return all
}
