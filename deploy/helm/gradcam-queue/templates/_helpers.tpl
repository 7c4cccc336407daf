{{- define "gradcam.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride -}}
{{- /* What is cut has a mark of the whole: two long names that begin alike stay two. */ -}}
{{- gt (len $full) 40 | ternary (printf "%s-%s" (trunc 31 $full | trimSuffix "-") (sha256sum $full | trunc 8)) $full -}}
{{- end -}}

{{- /* In quotes: a release may be called `on`, which YAML reads as a boolean. */ -}}
{{- define "gradcam.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{- define "gradcam.labels" -}}
{{ include "gradcam.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "gradcam.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "gradcam.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "gradcam.image" -}}
{{- $image := .root.Values.image -}}
{{- $digest := get $image (printf "%sDigest" .target) -}}
{{- if $digest -}}
{{- printf "%s@%s" $image.repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (get $image (printf "%sTag" .target)) -}}
{{- end -}}
{{- end -}}

{{- define "gradcam.redisSecret" -}}
{{- if .Values.trial.valkey.enabled -}}
{{- include "gradcam.fullname" . }}-valkey
{{- else -}}
{{- .Values.redis.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "gradcam.s3Secret" -}}
{{- if .Values.trial.s3.enabled -}}
{{- include "gradcam.fullname" . }}-s3
{{- else -}}
{{- .Values.s3.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "gradcam.s3Endpoint" -}}
{{- if .Values.trial.s3.enabled -}}
http://{{ include "gradcam.fullname" . }}-s3:8333
{{- else -}}
{{- .Values.s3.endpointUrl -}}
{{- end -}}
{{- end -}}

{{- /* Where Redis is, for every pod of ours. Secrets are files: an environment is shown by `kubectl describe`. */ -}}
{{- define "gradcam.redisEnv" -}}
- name: GRADCAM_REDIS_URL_FILE
  value: /etc/gradcam/redis/{{ ternary "redis-url" .Values.redis.key .Values.trial.valkey.enabled }}
- name: GRADCAM_S3_BUCKET
  value: {{ .Values.s3.bucket | default "gradcam" | quote }}
{{- end -}}

{{- define "gradcam.s3Env" -}}
{{- with include "gradcam.s3Endpoint" . }}
- name: GRADCAM_S3_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.publicEndpointUrl }}
- name: GRADCAM_S3_PUBLIC_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
- name: GRADCAM_S3_PREFIX
  value: {{ .Values.s3.prefix | quote }}
{{- with .Values.s3.region | default (ternary "us-east-1" "" .Values.trial.s3.enabled) }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- if include "gradcam.s3Secret" . }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/gradcam/s3/{{ ternary "credentials" .Values.s3.key .Values.trial.s3.enabled }}
{{- end }}
{{- end -}}

{{- define "gradcam.tracesEnv" -}}
{{- with .Values.traces.endpoint }}
- name: GRADCAM_TRACES
  value: otlp
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- include "gradcam.extraEnv" $.Values.traces.env }}
{{- end }}
{{- end -}}

{{- /* A value as text. Helm reads a number as a float, which it would write as 2.1e+08; JSON has all its digits. */ -}}
{{- define "gradcam.text" -}}
{{- kindIs "string" . | ternary . (toJson .) -}}
{{- end -}}

{{- define "gradcam.extraEnv" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ include "gradcam.text" $value | quote }}
{{- end }}
{{- end -}}

{{- /* What worker, exporter and client take alike: `part` is theirs of the values. Of `scratch`, volumes that are empty at first,
nothing is missed: without that word the cluster's autoscaler takes no node away on which such a pod is. */ -}}
{{- define "gradcam.podMetadata" -}}
labels:
  {{- include "gradcam.labels" . | nindent 2 }}
  {{- with .part.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- $scratch := ternary (dict "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes" .scratch) dict (not (empty .scratch)) }}
{{- with merge dict .part.podAnnotations $scratch }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "gradcam.ownEnv" -}}
{{- include "gradcam.extraEnv" .env }}
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gradcam.placement" -}}
{{- $part := . }}
{{- range $field := list "priorityClassName" "runtimeClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "dnsConfig" "hostAliases" }}
{{- with get $part $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "gradcam.redisVolume" -}}
- name: redis
  secret: {secretName: {{ include "gradcam.redisSecret" . | quote }}, defaultMode: 0440}
{{- end -}}

{{- define "gradcam.s3Volume" -}}
{{- with include "gradcam.s3Secret" . }}
- name: s3
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "gradcam.s3Mount" -}}
{{- if include "gradcam.s3Secret" . }}
- {name: s3, mountPath: /etc/gradcam/s3, readOnly: true}
{{- end }}
{{- end -}}

{{- define "gradcam.podSecurity" -}}
runAsNonRoot: true
{{- $ids := dict "runAsUser" .user "runAsGroup" .group "fsGroup" .group }}
{{- range $field, $id := .root.Values.podSecurity }}
{{- if not (kindIs "invalid" $id) }}
{{ $field }}: {{ get $ids $field | default $id | include "gradcam.text" }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "gradcam.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "gradcam.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ if kindIs "string" . }}{{ . | quote }}{{ else }}{{ .name | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Of `1g.10gb+me` the device plugin makes `1g.10gb.me`: a resource's name has no `+`. */ -}}
{{- define "gradcam.gpuResource" -}}
{{- if .Values.worker.gpu.migProfile -}}
nvidia.com/mig-{{ .Values.worker.gpu.migProfile | replace "+" "." }}
{{- else -}}
{{- .Values.worker.gpu.resource -}}
{{- end -}}
{{- end -}}

{{- define "gradcam.workerResources" -}}
{{- $gpu := eq .Values.worker.device "gpu" -}}
{{- $default := ternary
      (dict "requests" (dict "cpu" "4" "memory" "12Gi") "limits" (dict "memory" "16Gi"))
      (dict "requests" (dict "cpu" "4" "memory" "8Gi") "limits" (dict "cpu" "4" "memory" "8Gi")) $gpu -}}
{{- $resources := deepCopy (default $default .Values.worker.resources) -}}
{{- if $gpu -}}
{{- $limits := merge (dict (include "gradcam.gpuResource" .) (include "gradcam.text" .Values.worker.gpu.count)) (get $resources "limits" | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /* A policy is about ports of pods, not of Services. Those of DNS listen at 53; on OpenShift at 5353, with Gardener at 8053, in
a vcluster at 1053. */ -}}
{{- define "gradcam.dnsEgress" -}}
- ports:
    {{- range $port := list 53 1053 5353 8053 }}
    - {port: {{ $port }}, protocol: UDP}
    - {port: {{ $port }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{- define "gradcam.redisEgress" -}}
{{- if .Values.trial.valkey.enabled }}
- to:
    - podSelector:
        matchLabels: {{- include "gradcam.selector" (dict "root" . "component" "valkey") | nindent 10 }}
  ports: [{port: 6379, protocol: TCP}]
{{- else }}
- ports: [{port: {{ .Values.networkPolicy.redisPort }}, protocol: TCP}]
{{- end }}
{{- end -}}

{{- define "gradcam.s3Egress" -}}
{{- if .Values.trial.s3.enabled }}
- to:
    - podSelector:
        matchLabels: {{- include "gradcam.selector" (dict "root" . "component" "s3") | nindent 10 }}
  ports: [{port: 8333, protocol: TCP}]
{{- else if .Values.s3.endpointUrl }}
- ports: [{port: {{ include "gradcam.portOf" .Values.s3.endpointUrl }}, protocol: TCP}]
{{- end }}
{{- end -}}

{{- define "gradcam.tracesEgress" -}}
{{- with .Values.traces.endpoint }}
- ports: [{port: {{ include "gradcam.portOf" . }}, protocol: TCP}]
{{- end }}
{{- end -}}

{{- /* Of an address with or without one. */ -}}
{{- define "gradcam.portOf" -}}
{{- $parts := urlParse . -}}
{{- regexFind ":[0-9]+$" $parts.host | trimPrefix ":" | default (ternary "443" "80" (eq $parts.scheme "https")) -}}
{{- end -}}

{{- define "gradcam.webEgress" -}}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- with .Values.networkPolicy.except }}
        except: {{- toYaml . | nindent 10 }}
        {{- end }}
    - ipBlock:
        cidr: "::/0"
        {{- with .Values.networkPolicy.exceptIPv6 }}
        except: {{- toYaml . | nindent 10 }}
        {{- end }}
  ports: [{port: 80, protocol: TCP}, {port: 443, protocol: TCP}]
{{- end -}}
