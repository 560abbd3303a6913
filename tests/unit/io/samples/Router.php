<?php

declare(strict_types=1);

namespace Example\Http;

use InvalidArgumentException;
use function array_map;

const VERSION = '1.0';

/** Tells what a request is — größer. */
interface Matcher
{
    public function matches(string $path): bool;
}

enum Method: string
{
    case Get = 'GET';
    case Post = 'POST';

    public function isSafe(): bool
    {
        return $this === self::Get;
    }
}

trait Logs
{
    private array $lines = [];

    protected function log(string $line): void
    {
        $this->lines[] = $line;
    }
}

/**
 * Routes requests.
 */
#[Attribute]
abstract class Router implements Matcher
{
    use Logs;

    public const LIMIT = 10;
    private static ?self $instance = null;

    public function __construct(
        private readonly string $prefix = '',
        protected array $routes = [],
    ) {
        if ($prefix === '/') {
            throw new InvalidArgumentException('prefix');
        }
    }

    abstract protected function name(): string;

    // A comment between members.
    public function matches(string $path): bool
    {
        foreach ($this->routes as $pattern => $handler) {
            if (preg_match("#^{$this->prefix}$pattern$#u", $path)) {
                $this->log("matched 🎉");
                return true;
            }
        }
        return false;
    }

    public static function build(callable ...$handlers): static
    {
        $names = array_map(fn ($h) => is_string($h) ? $h : 'closure', $handlers);
        return new class ('', $names) extends Router {
            protected function name(): string
            {
                return 'anonymous';
            }
        };
    }
}

function dispatch(Router $router, string $path): int
{
    $text = <<<TEXT
    {$path} and more
    TEXT;
    return match (true) {
        $router->matches($text) => 200,
        default => 404,
    };
}

if (PHP_SAPI === 'cli') {
    function main(array $argv): int
    {
        return count($argv) > 1 ? 0 : 2;
    }
    exit(main($argv));
}
?>
<h1>Router</h1>
