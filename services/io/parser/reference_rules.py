"""How each grammar writes calls, bases and imports: one query per language, as data.

Captures are the same everywhere: `@call` is the name that is called, `@on` what stands before it,
`@base` is a class that is inherited from; `@module` is the module of an import, `@name` what of it
is imported, `@names` a list of that, and `@alias` the name that it has in the file. No pattern may
wait for something behind a list: each item would wait, which takes the square of their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ReferenceRules:
    """A language's query, and how its imports are read."""

    query: str
    separator: str = "/"
    """What stands between the parts of a module."""

    names_last: bool = False
    """Whether an import names one thing by its path (`import a.b.C`), not a module."""

    here: Mapping[str, str] = field(default_factory=dict)
    """First parts of a module that say where it is looked for, as `.`, `..` or nothing."""


_PYTHON = """
(call function: (identifier) @call)
(call function: (attribute object: (_) @on attribute: (identifier) @call))
(decorator (identifier) @call)
(decorator (attribute object: (_) @on attribute: (identifier) @call))
(class_definition superclasses: (argument_list [(identifier) (attribute)] @base))
(class_definition superclasses: (argument_list (subscript value: (_) @base)))
(import_statement name: (dotted_name) @module)
(import_statement name: (aliased_import name: (dotted_name) @module alias: (identifier) @alias))
(import_from_statement module_name: (_) @module name: (dotted_name) @name)
(import_from_statement module_name: (_) @module
  name: (aliased_import name: (dotted_name) @name alias: (identifier) @alias))
(import_from_statement module_name: (_) @module (wildcard_import) @name)
"""

_SCRIPT = """
(call_expression function: (identifier) @call)
(call_expression function: (member_expression object: (_) @on property: (_) @call))
(new_expression constructor: (identifier) @call)
(new_expression constructor: (member_expression object: (_) @on property: (_) @call))
(import_statement (import_clause (identifier) @alias) source: (string) @module)
(import_statement (import_clause (namespace_import (identifier) @alias)) source: (string) @module)
(import_statement (import_clause (named_imports) @names) source: (string) @module)
(export_statement (export_clause) @names source: (string) @module)
(export_statement "*" @name source: (string) @module)
(variable_declarator name: (identifier) @alias
  value: (call_expression function: (identifier) @_require arguments: (arguments (string) @module))
  (#eq? @_require "require"))
(variable_declarator name: (object_pattern) @names
  value: (call_expression function: (identifier) @_require arguments: (arguments (string) @module))
  (#eq? @_require "require"))
"""

_JAVASCRIPT = _SCRIPT + "(class_heritage (_) @base)\n"

_TYPESCRIPT = (
    _SCRIPT
    + """
(extends_clause value: (_) @base)
(implements_clause [(type_identifier) (generic_type) (nested_type_identifier)] @base)
(extends_type_clause type: (_) @base)
"""
)

_GO = """
(call_expression function: (identifier) @call)
(call_expression function: (selector_expression operand: (_) @on field: (_) @call))
(call_expression function: (index_expression operand: (identifier) @call))
(call_expression function: (index_expression
  operand: (selector_expression operand: (_) @on field: (_) @call)))
(field_declaration !name type: [(type_identifier) (qualified_type)] @base)
(field_declaration !name type: (pointer_type (_) @base))
(interface_type (type_elem (type_identifier) @base))
(interface_type (type_elem (qualified_type) @base))
(import_spec name: (_) @alias path: (_) @module)
(import_spec !name path: (_) @module)
"""

_RUST = """
(call_expression function: (identifier) @call)
(call_expression function: (scoped_identifier path: (_) @on name: (_) @call))
(call_expression function: (field_expression value: (_) @on field: (field_identifier) @call))
(call_expression function: (generic_function function: (identifier) @call))
(call_expression function: (generic_function
  function: (scoped_identifier path: (_) @on name: (_) @call)))
(macro_invocation macro: (identifier) @call)
(impl_item trait: (_) @base)
(trait_item bounds: (trait_bounds
  [(type_identifier) (scoped_type_identifier) (generic_type)] @base))
(use_declaration argument: [(identifier) (scoped_identifier) (use_wildcard)] @module)
(use_declaration argument: (use_as_clause path: (_) @module alias: (_) @alias))
(use_declaration argument: (scoped_use_list path: (_) @module list: (use_list) @names))
"""

_JAVA = """
(method_invocation !object name: (_) @call)
(method_invocation object: (_) @on name: (_) @call)
(object_creation_expression type: (_) @call)
(superclass (_) @base)
(super_interfaces (type_list (_) @base))
(extends_interfaces (type_list (_) @base))
(import_declaration (scoped_identifier) @module . ";")
(import_declaration [(identifier) (scoped_identifier)] @module (asterisk) @name)
"""

_KOTLIN = """
(call_expression . (identifier) @call)
(call_expression . (navigation_expression (_) @on (identifier) @call .))
(delegation_specifier (user_type) @base)
(delegation_specifier (constructor_invocation (user_type) @base))
(import (qualified_identifier) @module . )
(import (qualified_identifier) @module (identifier) @alias)
(import (qualified_identifier) @module "*" @name)
"""

_SCALA = """
(call_expression function: (identifier) @call)
(call_expression function: (field_expression value: (_) @on field: (identifier) @call))
(call_expression function: (generic_function function: (identifier) @call))
(instance_expression (type_identifier) @call)
(extends_clause [(type_identifier) (generic_type) (stable_type_identifier)] @base)
(import_declaration "import" . [(identifier) "."]+ @module . (identifier) @name .)
(import_declaration "import" . [(identifier) "."]+ @module . (namespace_wildcard) @name)
(import_declaration "import" . [(identifier) "."]+ @module . (namespace_selectors) @names)
(import_declaration "import" . [(identifier) "."]+ @module .
  (as_renamed_identifier name: (identifier) @name alias: (identifier) @alias))
"""

_RUBY = """
(call !receiver method: [(identifier) (constant)] @call)
(call receiver: (_) @on method: [(identifier) (constant)] @call)
(superclass [(constant) (scope_resolution)] @base)
(call !receiver method: (identifier) @_include
  arguments: (argument_list [(constant) (scope_resolution)] @base)
  (#any-of? @_include "include" "extend" "prepend"))
(call method: (identifier) @_require arguments: (argument_list (string) @module)
  (#any-of? @_require "require" "require_relative"))
"""

_C = """
(call_expression function: (identifier) @call)
(call_expression function: (field_expression argument: (_) @on field: (_) @call))
(preproc_include path: (_) @module)
"""

_CPP = (
    _C
    + """
(call_expression function: (qualified_identifier) @call)
(call_expression function: (template_function name: (identifier) @call))
(new_expression type: [(type_identifier) (qualified_identifier) (template_type)] @call)
(base_class_clause [(type_identifier) (qualified_identifier) (template_type)] @base)
"""
)

_C_SHARP = """
(invocation_expression function: (identifier) @call)
(invocation_expression function: (generic_name (identifier) @call))
(invocation_expression function: (member_access_expression expression: _ @on name: (_) @call))
(object_creation_expression type: (_) @call)
(base_list [(identifier) (qualified_name) (generic_name)] @base)
(using_directive !name [(identifier) (qualified_name)] @module)
(using_directive name: (identifier) @alias . "=" . (identifier) @module)
(using_directive name: (identifier) @alias (qualified_name qualifier: (_) @module
  name: [(identifier) @name (generic_name (identifier) @name)]))
"""

_PHP = """
(function_call_expression function: (name) @call)
(function_call_expression function: (qualified_name) @call)
(member_call_expression object: (_) @on name: (name) @call)
(nullsafe_member_call_expression object: (_) @on name: (name) @call)
(scoped_call_expression scope: (_) @on name: (name) @call)
(object_creation_expression [(name) (qualified_name)] @call)
(base_clause [(name) (qualified_name)] @base)
(class_interface_clause [(name) (qualified_name)] @base)
(use_declaration [(name) (qualified_name)] @base)
(namespace_use_declaration (namespace_use_clause [(name) (qualified_name)] @module !alias))
(namespace_use_declaration
  (namespace_use_clause [(name) (qualified_name)] @module alias: (name) @alias))
(namespace_use_declaration (namespace_name) @module body: (namespace_use_group) @names)
"""

_SWIFT = """
(call_expression . (simple_identifier) @call)
(call_expression . (navigation_expression target: (_) @on
  suffix: (navigation_suffix suffix: (simple_identifier) @call)))
(inheritance_specifier inherits_from: (_) @base)
(import_declaration (identifier) @module)
"""

_BASH = """
(command name: (command_name (word) @call))
(command name: (command_name (word) @_source) . argument: (_) @module
  (#any-of? @_source "source" "."))
"""

_CRATE = {"crate": "", "self": ".", "super": "."}
"""`super` of a file is, save for a `mod.rs`, the folder around it."""

REFERENCE_RULES: Mapping[str, ReferenceRules] = {
    "bash": ReferenceRules(_BASH),
    "c": ReferenceRules(_C),
    "c-sharp": ReferenceRules(_C_SHARP, separator="."),
    "cpp": ReferenceRules(_CPP),
    "go": ReferenceRules(_GO),
    "java": ReferenceRules(_JAVA, separator=".", names_last=True),
    "javascript": ReferenceRules(_JAVASCRIPT),
    "kotlin": ReferenceRules(_KOTLIN, separator=".", names_last=True),
    "php": ReferenceRules(_PHP, separator="\\", names_last=True),
    "python": ReferenceRules(_PYTHON, separator="."),
    "ruby": ReferenceRules(_RUBY),
    "rust": ReferenceRules(_RUST, separator="::", names_last=True, here=_CRATE),
    "scala": ReferenceRules(_SCALA, separator=".", names_last=True),
    "swift": ReferenceRules(_SWIFT, separator="."),
    "tsx": ReferenceRules(_TYPESCRIPT),
    "typescript": ReferenceRules(_TYPESCRIPT),
}
