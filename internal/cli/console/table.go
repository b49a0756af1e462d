package console

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/cli/command/formatter/tabwriter"
	"github.com/docker/cli/templates"
)

// Table prints rows by a template in docker's way: "table TEMPLATE" aligns the
// columns below their headers, "json" is a JSON object a row, anything else is a
// template for each. The rows are structs, or have methods, of the template's
// names; headers has the columns' titles by the same names.
func Table[T any](c *Console, format string, headers map[string]string, rows []T) error {
	text, table := strings.CutPrefix(format, formatter.TableFormatKey)
	if text == formatter.JSONFormatKey {
		text = formatter.JSONFormat
	}
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.Trim(text, " "))
	t, err := templates.Parse(text)
	if err != nil {
		return InvalidTemplate(format, err)
	}
	var body bytes.Buffer
	for _, row := range rows {
		if err := t.Execute(&body, row); err != nil {
			return InvalidTemplate(format, err)
		}
		body.WriteByte('\n')
	}
	if !table {
		_, err := body.WriteTo(c.Out)
		return err
	}
	return c.Buffered(func(out io.Writer) error {
		const width, padding = 10, 3 // docker's
		tw := tabwriter.NewWriter(out, width, 1, padding, ' ', 0)
		if err := t.Funcs(templates.HeaderFunctions).Execute(tw, headers); err != nil {
			return InvalidTemplate(format, err)
		}
		fmt.Fprintln(tw)
		if _, err := body.WriteTo(tw); err != nil {
			return err
		}
		return tw.Flush()
	})
}

// Buffered writes a listing at once: what aligns its columns writes each cell, and
// each blank, by itself.
func (c *Console) Buffered(write func(io.Writer) error) error {
	out := bufio.NewWriterSize(c.Out, 64<<10)
	err := write(out)
	return errors.Join(err, out.Flush())
}

// FormatOr is the format that a listing is printed by: ids alone, what was asked
// for, or the default table.
func FormatOr(format string, quiet bool, id, table string) string {
	switch {
	case quiet:
		return "{{." + id + "}}"
	case format == "" || format == formatter.TableFormatKey:
		return "table " + table
	}
	return format
}
