# The software bill of materials (CycloneDX 1.5) of the package $package, of `cargo metadata`: what is compiled into its programs, and
# what builds them. No path of the machine, no time, no random number: the same lock file gives the same bytes.
def purl: "pkg:cargo/\(.name)@\(.version)";
# Written before SPDX expressions had OR.
def expression: gsub(" */ *"; " OR ");
(.packages | INDEX(.id)) as $packages
| (.resolve.nodes | INDEX(.id)) as $nodes
| (.packages[] | select(.name == $package and .source == null) | .id) as $root
| def needed: $nodes[.].deps | map(select(any(.dep_kinds[]; .kind != "dev")) | .pkg);
  ({seen: {($root): true}, todo: [$root]}
    | until(.todo == []; .todo[0] as $id | ($id | needed) as $next | .todo |= .[1:]
        | reduce $next[] as $n (.; if .seen[$n] then . else .seen[$n] = true | .todo += [$n] end))
    | .seen | keys) as $ids
| def component($type): {type: $type, "bom-ref": purl, name, version}
    + (if .license then {licenses: [{expression: (.license | expression)}]} else {} end)
    + (if .source then {purl: purl} else {} end);
{
  bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
  metadata: {component: ($packages[$root] | component("application"))},
  components: ($ids - [$root] | map($packages[.] | component("library")) | sort_by(.["bom-ref"])),
  dependencies: ($ids | map({ref: ($packages[.] | purl), dependsOn: (needed | map($packages[.] | purl) | unique)}) | sort_by(.ref))
}
