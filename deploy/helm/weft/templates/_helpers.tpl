{{/* Everything of Weft is found by these labels: weft uninstall goes by part-of. */}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "weft.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Annotations of a workload's pods: its own, and those that scrape configurations go by. Its own win. */}}
{{- define "weft.annotations" -}}
{{- $all := dict }}
{{- with .root.Values.metrics }}
{{- if and .enabled .annotations }}
{{- $all = dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString .port) "prometheus.io/path" "/metrics" }}
{{- end }}
{{- end }}
{{- with mergeOverwrite $all (deepCopy .own) }}
{{- toYaml . }}
{{- end }}
{{- end }}
