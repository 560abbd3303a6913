"""Which languages are parsed with a grammar, and what is a declaration in each: rules as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT = "text"
MARKDOWN = "markdown"

_SLASH_DOCS = (b"/**", b"///", b"/*!")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class LanguageRules:
    """How one grammar names what we look for; all sets hold node types."""

    name: str
    suffixes: tuple[str, ...]
    module: str
    """Python module of the grammar wheel, and the function in it that gives the language."""
    functions: frozenset[str]
    classes: frozenset[str] = frozenset()
    factory: str = "language"
    wrappers: frozenset[str] = frozenset()
    """Types around one declaration, such as decorators, exports and templates."""
    bindings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Types that give a name to a value: the fields of both."""
    carriers: frozenset[str] = frozenset()
    """Types that may define a class by the way: `struct point { int x; } origin;`."""
    calls: frozenset[str] = frozenset()
    """Types of calls that may take a function, as in `memo(() => ...)`."""
    objects: frozenset[str] = frozenset()
    """Types of literals that are like classes when they hold functions."""
    containers: frozenset[str] = frozenset()
    """Types whose declarations belong to what is around them; named ones lend their name."""
    bodies: frozenset[str] = frozenset()
    """Types of bodies that have no field `body`."""
    body_required: frozenset[str] = frozenset()
    """Class types that are declarations with a body alone: elsewhere they are mere mentions."""
    empty_bodies: bool = False
    """Whether a function without body has an empty one, and is no mere mention."""
    name_fields: tuple[str, ...] = ("name",)
    comments: frozenset[str] = frozenset({"comment"})
    docs: tuple[bytes, ...] = ()
    """How comments begin that belong to the declaration below them."""
    module_docs: tuple[bytes, ...] = ()
    """How comments begin that belong to the module."""
    named_docs: bool = False
    """Whether a comment above a declaration belongs to it if it starts with its name."""
    attributes: frozenset[str] = frozenset()
    """Types that stand before a declaration and belong to it."""
    ignored: frozenset[str] = frozenset()


_SCRIPT_BINDINGS = {
    "variable_declarator": ("name", "value"),
    "assignment_expression": ("left", "right"),
    "pair": ("key", "value"),
    "field_definition": ("property", "value"),
    "public_field_definition": ("name", "value"),
}
_SCRIPT_FUNCTIONS = _names(
    """function_declaration generator_function_declaration method_definition arrow_function
    function_expression generator_function function_signature method_signature
    abstract_method_signature"""
)
_SCRIPT_WRAPPERS = _names(
    "export_statement lexical_declaration variable_declaration expression_statement"
    " ambient_declaration parenthesized_expression"
)
_TYPESCRIPT_CLASSES = _names(
    """class_declaration class abstract_class_declaration interface_declaration enum_declaration
    type_alias_declaration"""
)
_C_PREPROCESSOR = "preproc_ifdef preproc_if preproc_else preproc_elif linkage_specification"


def _typescript(name: str, suffixes: tuple[str, ...]) -> LanguageRules:
    return LanguageRules(
        name=name,
        suffixes=suffixes,
        module="tree_sitter_typescript",
        factory=f"language_{name}",
        functions=_SCRIPT_FUNCTIONS,
        classes=_TYPESCRIPT_CLASSES,
        wrappers=_SCRIPT_WRAPPERS,
        bindings=_SCRIPT_BINDINGS,
        calls=_names("call_expression"),
        objects=_names("object"),
        containers=_names("internal_module module statement_block"),
        docs=_SLASH_DOCS,
        attributes=_names("decorator"),
    )


LANGUAGES: tuple[LanguageRules, ...] = (
    LanguageRules(
        name="bash",
        suffixes=(".sh", ".bash", ".zsh", ".ksh", ".bats"),
        module="tree_sitter_bash",
        functions=_names("function_definition"),
        containers=_names("if_statement elif_clause else_clause"),
    ),
    LanguageRules(
        name="c",
        suffixes=(".c",),
        module="tree_sitter_c",
        functions=_names("function_definition"),
        classes=_names("struct_specifier union_specifier enum_specifier"),
        body_required=_names("struct_specifier union_specifier enum_specifier"),
        bindings={"type_definition": ("declarator", "type")},
        carriers=_names("declaration"),
        containers=_names(f"{_C_PREPROCESSOR} declaration_list"),
        name_fields=("name", "declarator"),
        docs=_SLASH_DOCS,
    ),
    LanguageRules(
        name="c-sharp",
        suffixes=(".cs", ".csx"),
        module="tree_sitter_c_sharp",
        functions=_names(
            """method_declaration constructor_declaration destructor_declaration
            operator_declaration conversion_operator_declaration indexer_declaration
            local_function_statement"""
        ),
        classes=_names(
            """class_declaration struct_declaration interface_declaration enum_declaration
            record_declaration record_struct_declaration delegate_declaration"""
        ),
        wrappers=_names("global_statement"),
        containers=_names(
            "namespace_declaration file_scoped_namespace_declaration preproc_if preproc_else"
            " preproc_elif preproc_region"
        ),
        bodies=_names("accessor_list"),
        docs=_SLASH_DOCS,
    ),
    LanguageRules(
        name="cpp",
        suffixes=(".cc", ".cpp", ".cxx", ".c++", ".h", ".hh", ".hpp", ".hxx", ".inl", ".ipp", ".cu",
                  ".cuh", ".ino"),
        module="tree_sitter_cpp",
        functions=_names("function_definition"),
        classes=_names(
            "class_specifier struct_specifier union_specifier enum_specifier concept_definition"
        ),
        body_required=_names("class_specifier struct_specifier union_specifier enum_specifier"),
        wrappers=_names("template_declaration friend_declaration"),
        bindings={"type_definition": ("declarator", "type")},
        carriers=_names("declaration field_declaration"),
        containers=_names(f"{_C_PREPROCESSOR} declaration_list namespace_definition"),
        name_fields=("name", "declarator"),
        docs=_SLASH_DOCS,
        ignored=_names("access_specifier"),
    ),
    LanguageRules(
        name="go",
        suffixes=(".go",),
        module="tree_sitter_go",
        functions=_names("function_declaration method_declaration"),
        classes=_names("type_spec type_alias"),
        wrappers=_names("type_declaration"),
        containers=_names("type_declaration"),
        named_docs=True,
    ),
    LanguageRules(
        name="java",
        suffixes=(".java",),
        module="tree_sitter_java",
        functions=_names(
            "method_declaration constructor_declaration compact_constructor_declaration"
        ),
        classes=_names(
            """class_declaration interface_declaration enum_declaration record_declaration
            annotation_type_declaration"""
        ),
        containers=_names("enum_body_declarations"),
        comments=_names("line_comment block_comment"),
        docs=_SLASH_DOCS,
    ),
    LanguageRules(
        name="javascript",
        suffixes=(".js", ".jsx", ".mjs", ".cjs", ".es6"),
        module="tree_sitter_javascript",
        functions=_SCRIPT_FUNCTIONS,
        classes=_names("class_declaration class"),
        wrappers=_SCRIPT_WRAPPERS,
        bindings=_SCRIPT_BINDINGS,
        calls=_names("call_expression"),
        objects=_names("object"),
        comments=_names("comment html_comment"),
        docs=_SLASH_DOCS,
        attributes=_names("decorator"),
    ),
    LanguageRules(
        name="kotlin",
        suffixes=(".kt", ".kts"),
        module="tree_sitter_kotlin",
        functions=_names("function_declaration secondary_constructor"),
        classes=_names("class_declaration object_declaration companion_object"),
        bodies=_names("class_body enum_class_body function_body block"),
        comments=_names("line_comment block_comment"),
        docs=_SLASH_DOCS,
    ),
    LanguageRules(
        name="php",
        suffixes=(".php", ".phtml", ".php8", ".inc"),
        module="tree_sitter_php",
        factory="language_php",
        functions=_names("function_definition method_declaration"),
        classes=_names(
            "class_declaration interface_declaration trait_declaration enum_declaration"
        ),
        containers=_names(
            "namespace_definition compound_statement if_statement else_clause else_if_clause"
            " colon_block"
        ),
        docs=_SLASH_DOCS,
        ignored=_names("php_tag"),
    ),
    LanguageRules(
        name="python",
        suffixes=(".py", ".pyi", ".pyw"),
        module="tree_sitter_python",
        functions=_names("function_definition"),
        classes=_names("class_definition"),
        wrappers=_names("decorated_definition"),
        containers=_names(
            "if_statement try_statement with_statement elif_clause else_clause except_clause"
            " finally_clause block"
        ),
    ),
    LanguageRules(
        name="ruby",
        suffixes=(".rb", ".rake", ".gemspec", ".ru"),
        module="tree_sitter_ruby",
        functions=_names("method singleton_method"),
        classes=_names("class module"),
        bindings={"assignment": ("left", "right")},
        calls=_names("call"),
        containers=_names("singleton_class body_statement if unless then elsif else"),
        empty_bodies=True,
    ),
    LanguageRules(
        name="rust",
        suffixes=(".rs",),
        module="tree_sitter_rust",
        functions=_names("function_item function_signature_item macro_definition"),
        classes=_names("struct_item enum_item union_item trait_item impl_item type_item"),
        containers=_names("mod_item foreign_mod_item"),
        name_fields=("name", "type"),
        comments=_names("line_comment block_comment"),
        docs=(b"///", b"/**"),
        module_docs=(b"//!", b"/*!"),
        attributes=_names("attribute_item"),
    ),
    LanguageRules(
        name="scala",
        suffixes=(".scala", ".sc", ".sbt"),
        module="tree_sitter_scala",
        functions=_names("function_definition function_declaration given_definition"),
        classes=_names("class_definition object_definition trait_definition enum_definition"),
        containers=_names("extension_definition package_object package_clause template_body"),
        comments=_names("comment block_comment"),
        docs=_SLASH_DOCS,
    ),
    LanguageRules(
        name="swift",
        suffixes=(".swift",),
        module="tree_sitter_swift",
        functions=_names(
            """function_declaration init_declaration deinit_declaration subscript_declaration
            protocol_function_declaration"""
        ),
        classes=_names("class_declaration protocol_declaration"),
        bodies=_names("computed_property"),
        comments=_names("comment multiline_comment"),
        docs=_SLASH_DOCS,
    ),
    _typescript("tsx", (".tsx",)),
    _typescript("typescript", (".ts", ".mts", ".cts")),
)  # fmt: skip

MARKDOWN_SUFFIXES = (".md", ".markdown", ".mdx", ".mkd")

RULES: Mapping[str, LanguageRules] = {rules.name: rules for rules in LANGUAGES}

_BY_SUFFIX: Mapping[str, str] = {
    suffix: rules.name for rules in LANGUAGES for suffix in rules.suffixes
} | dict.fromkeys(MARKDOWN_SUFFIXES, MARKDOWN)

LANGUAGES_BY_NAME: Mapping[str, str] = {
    "Rakefile": "ruby",
    "Gemfile": "ruby",
    "Vagrantfile": "ruby",
    "Podfile": "ruby",
    "Guardfile": "ruby",
    "Brewfile": "ruby",
    "SConstruct": "python",
    "SConscript": "python",
    "wscript": "python",
    ".bashrc": "bash",
    ".bash_profile": "bash",
    ".profile": "bash",
    ".zshrc": "bash",
    "PKGBUILD": "bash",
}


def language_by_name(name: str) -> str:
    """Returns the language of a file by its name alone; `text` when no grammar is known for it."""
    dot = name.rfind(".")
    found = _BY_SUFFIX.get(name[dot:].lower()) if dot >= 0 else None
    return found or LANGUAGES_BY_NAME.get(name, TEXT)
