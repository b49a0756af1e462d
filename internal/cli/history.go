package cli

import (
	"io"
	"strconv"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/engine"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"
)

func (a *app) historyCommand() *cobra.Command {
	var format, platform string
	var human, noTrunc, quiet bool
	cmd := &cobra.Command{
		Use: "history [OPTIONS] IMAGE", Short: "Show the history of an image", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := console.AnyOr(platform)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				items, err := e.Images.History(cmd.Context(), args[0], p)
				if err != nil {
					return err
				}
				return a.Buffered(func(out io.Writer) error {
					return writeHistory(formatter.Context{Output: out, Format: historyFormat(format, quiet, human), Trunc: !noTrunc}, items, human)
				})
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	cmd.Flags().StringVar(&platform, "platform", "", "Show history for the given platform")
	return cmd
}

func historyFormat(format string, quiet, human bool) formatter.Format {
	switch {
	case format != "" && format != formatter.TableFormatKey:
		return formatter.Format(format)
	case quiet:
		return formatter.DefaultQuietFormat
	case !human:
		return "table {{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
	default:
		return "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
	}
}

// historyRow is one line of `dhow history`; its methods are the template's names.
type historyRow struct {
	formatter.HeaderContext
	trunc, human bool
	item         image.HistoryResponseItem
}

func writeHistory(c formatter.Context, items []image.HistoryResponseItem, human bool) error {
	head := &historyRow{}
	head.Header = formatter.SubHeaderContext{
		"ID": "IMAGE", "CreatedSince": formatter.CreatedSinceHeader, "CreatedAt": formatter.CreatedAtHeader,
		"CreatedBy": "CREATED BY", "Size": formatter.SizeHeader, "Comment": "COMMENT",
	}
	return c.Write(head, func(format func(formatter.SubContext) error) error {
		for _, it := range items {
			if err := format(&historyRow{trunc: c.Trunc, human: human, item: it}); err != nil {
				return err
			}
		}
		return nil
	})
}

// MarshalJSON makes "--format json" print the methods' values.
func (h *historyRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(h) }

// ID is the image's, or <missing> for a layer that was no image.
func (h *historyRow) ID() string {
	if h.trunc {
		return formatter.TruncateID(h.item.ID)
	}
	return h.item.ID
}

// CreatedAt is RFC 3339.
func (h *historyRow) CreatedAt() string { return time.Unix(h.item.Created, 0).Format(time.RFC3339) }

// CreatedSince is how long ago.
func (h *historyRow) CreatedSince() string {
	if !h.human {
		return h.CreatedAt()
	}
	if h.item.Created <= 0 {
		return "N/A"
	}
	return units.HumanDuration(time.Now().UTC().Sub(time.Unix(h.item.Created, 0))) + " ago"
}

// CreatedBy is the instruction.
func (h *historyRow) CreatedBy() string {
	by := strings.ReplaceAll(h.item.CreatedBy, "\t", " ")
	if h.trunc {
		return formatter.Ellipsis(by, 45)
	}
	return by
}

// Size is the layer's, in bytes unless it is for people.
func (h *historyRow) Size() string {
	if h.human {
		return units.HumanSizeWithPrecision(float64(h.item.Size), 3)
	}
	return strconv.FormatInt(h.item.Size, 10)
}

// Comment is who made it.
func (h *historyRow) Comment() string { return h.item.Comment }
