// Renders Go templates as Ollama's server does: text/template, missing keys empty, and the function json.
// Reads one request {"template": text, "data": object} a line; writes {"text": text} or {"error": text} a line.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"text/template"
)

type request struct {
	Template string         `json:"template"`
	Data     map[string]any `json:"data"`
}

func render(asked request) (string, error) {
	functions := template.FuncMap{"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(asked.Template)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = parsed.Execute(&text, asked.Data)
	return text.String(), err
}

func main() {
	out := json.NewEncoder(os.Stdout)
	out.Encode(map[string]string{"version": runtime.Version()})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		text, err := render(asked)
		if err != nil {
			out.Encode(map[string]string{"error": err.Error()})
		} else {
			out.Encode(map[string]string{"text": text})
		}
	}
}
